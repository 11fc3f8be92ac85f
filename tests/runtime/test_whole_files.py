"""Files that are whole or not there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgemamba.runtime.whole_files import PART, remove_parts, whole_file, write_whole

KILLED = """
import sys
from pathlib import Path
from edgemamba.runtime.whole_files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one")
    write_whole(path, b"two", private=True)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_it_is_written_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_it_is_written_leaves_the_one_before_it(tmp_path: Path) -> None:
    path, other = tmp_path / "a.bin", tmp_path / f".b.bin.1{PART}"
    write_whole(path, b"one")
    other.touch()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"one"
    (torso,) = set(tmp_path.iterdir()) - {path, other}
    assert torso.read_bytes() == b"half"
    remove_parts(tmp_path, "a.*")
    assert set(tmp_path.iterdir()) == {path, other}
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one")
    to_full = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda name, flags, *mode: to_full(
            "/dev/full" if str(name).endswith(PART) else name, flags & ~os.O_CREAT, *mode
        ),
    )
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"
