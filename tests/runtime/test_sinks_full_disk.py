"""A full disk is one clear line, and what was written stays readable: under a file size limit everywhere, and on a real small
file system where one can be mounted."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemamba.runtime import open_source, stream
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sinks import open_sink
from edgemamba.runtime.sources import Source

cv2 = pytest.importorskip("cv2")


class Noise(Source):
    """Pictures that no codec can make small."""

    def __init__(self, count: int) -> None:
        super().__init__("noise")
        self.length = count
        self.fps = 25.0

    def __iter__(self) -> Iterator[Frame]:
        generator = np.random.default_rng(0)
        for index in range(self.length or 0):
            yield Frame(generator.integers(0, 256, (240, 320, 3), np.uint8), index, index / 25, "noise.avi")


def frames_in(path: Path) -> int:
    """How many whole results the output holds; fails where one is not whole."""
    if path.is_dir():
        pictures = [cv2.imread(str(picture)) for picture in path.iterdir()]
        assert all(picture is not None for picture in pictures)
        return len(pictures)
    if path.suffix == ".jsonl":
        return len([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".csv":
        rows = list(csv.reader(path.open()))
        assert len({len(row) for row in rows}) == 1
        return len(rows) - 1
    return len(list(open_source(path)))


NAMES = ["out.jsonl", "out.csv", "out.mp4", "out.avi", "out.mkv", "pictures"]

LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import onnxruntime
from edgemamba.runtime import load, stream
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks import open_sink
from test_sinks_full_disk import Noise
out, limit = sys.argv[2], int(sys.argv[4])
with load(sys.argv[1], "ort-function") as engine:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    results = stream(Noise(2000), engine, sinks=[open_sink(out)])
    try:
        for result in results:
            pass
    except SinkError as error:
        print("SINK", error)
"""


@pytest.mark.parametrize("name", NAMES[:-1])
def test_file_size_limit(name: str, tmp_path: Path, colour_bundle: Path) -> None:
    pytest.importorskip("resource", reason="RLIMIT_FSIZE is Unix's")
    pytest.importorskip("onnxruntime")
    limit = 4_000_000 if name in ("out.mp4", "out.avi", "out.mkv") else 20_000
    path = tmp_path / name
    command = [sys.executable, "-c", LIMITED, str(colour_bundle), str(path), str(Path(__file__).parent), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"SINK {path} cannot be written after ")
    assert done.stdout.count("\n") == 1
    assert path.stat().st_size <= limit
    written = int(done.stdout.split(" after ")[1].split()[0])
    assert written > 10
    assert abs(frames_in(path) - written) <= (1 if path.suffix in (".mkv", ".avi") else 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes of file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root and the right to mount)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_full_file_system(name: str, small_disk: Path, colour_engine: Any) -> None:
    if name.endswith((".jsonl", ".csv")):
        (small_disk / "ballast").write_bytes(bytes(4 * 2**20 - 40960))
    path = small_disk / name
    with pytest.raises(SinkError, match=r"cannot be written.*[Nn]o space left") as caught:
        list(stream(Noise(2000), colour_engine, sinks=[open_sink(path)]))
    assert "\n" not in str(caught.value)
    assert frames_in(path) > 10
