"""The DICOM port under damaged streams, for as long as it is told to, and under a very large instance: in how much memory.

``pytest tests/runtime/test_dimse_fuzz.py --fuzz-seconds 300 -s`` says how many streams there were, and what memory it took.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom")
import pydicom
from conftest import Fuzzing
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import facts, need, receiving, storescu
from runtime.test_dimse_faults import HalfWay
from runtime.waiting import wait_for

from edgemamba.runtime.memory import peak_bytes, reset_peak, resident_bytes

_STREAMS = 60  # in a round
_MIB = 1 << 20


class Recorder:
    """A proxy that keeps what a client sends."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.sent = bytearray()
        self._target = port
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=HalfWay.back, args=(far, near), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := near.recv(4096):
                self.sent += data
                far.sendall(data)
        far.close()


def mutated(stream: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, left out or put in, mostly near the beginning, where the headers are."""
    changed = bytearray(stream)
    reach = rng.choice([200, 700, len(changed)])
    for _ in range(rng.choice([1, 3, 20])):
        at, count = int(rng.integers(min(reach, len(changed)))), int(rng.integers(1, 60))
        how = rng.integers(3)
        if how == 0:
            changed[at] = int(rng.integers(256))
        elif how == 1:
            del changed[at : at + count]
        else:
            changed[at:at] = rng.bytes(count)
    return bytes(changed)


def recorded(reader: Any) -> tuple[bytes, bytes]:
    """What storescu sends for one instance: its A-ASSOCIATE-RQ, after which it waits, and the rest."""
    recorder = Recorder(reader.source.port)
    assert storescu(recorder.port, dicom_file("CT_small.dcm")).returncode == 0
    recorder.thread.join(10)
    sent = bytes(recorder.sent)
    end = 6 + int.from_bytes(sent[2:6], "big")
    return sent[:end], sent[end:]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_mutated_streams(tmp_path: Path, capfd: pytest.CaptureFixture[str], fuzzing: Fuzzing) -> None:
    """What storescu sends, damaged in many ways: either an instance that can be decoded, or nothing; nothing is left behind."""
    need("storescu")
    with receiving(tmp_path) as reader:
        reader.keep = False
        request, rest = recorded(reader)
        threads = threading.active_count()
        before, streams, growth = 0, 0, 0
        for seed in fuzzing.rounds():
            rng = np.random.default_rng(seed + 7)
            for number in range(_STREAMS):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", reader.source.port)) as connection,
                ):
                    connection.settimeout(0.3)
                    connection.sendall(mutated(request, rng) if number % 3 == 0 else request)
                    connection.recv(4096)
                    connection.sendall(rest if number % 3 == 0 else mutated(rest, rng))
                    while connection.recv(4096):
                        pass
            streams += _STREAMS
            wait_for(lambda: threading.active_count() <= threads)
            wait_for(lambda: reader.count == facts(reader)["received"])
            before = before or resident_bytes() or 0  # after the first round
            growth = ((resident_bytes() or 0) - before) // _MIB
        said = facts(reader)
        assert said["garbage"] > 0
        assert storescu(reader.source.port, dicom_file("CT_small.dcm")).returncode == 0
        assert not list((tmp_path / "incoming").iterdir())
        assert reader.source.skipped.count == 0
        assert growth < 50
    kept = {name: count for name, count in said.items() if isinstance(count, int) and count}
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    with capfd.disabled():
        print(f"\n{streams} streams: {kept}; resident memory grew by {growth} MiB after the first {_STREAMS}")


@pytest.mark.slow
def test_an_instance_of_300_mb_takes_the_memory_of_a_frame(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """300 frames of 1 MiB: written to disk as they come, read one by one."""
    need("storescu")
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 512, 300
    dataset.PixelData = b""
    path = tmp_path / "large.dcm"
    dataset.save_as(path)
    content = path.read_bytes()
    header = content[: content.rindex(b"\xe0\x7f\x10\x00OW")]
    with path.open("wb") as file:
        file.write(header + b"\xe0\x7f\x10\x00OW\0\0" + (300 * _MIB).to_bytes(4, "little"))
        for index in range(300):
            file.write(bytes([index % 256]) * _MIB)
    with receiving(tmp_path / "spool") as reader:
        reader.keep = False
        assert storescu(reader.source.port, dicom_file("CT_small.dcm")).returncode == 0
        reader.wait(1)
        if not reset_peak():
            pytest.skip("the peak of memory cannot be reset here")
        before = resident_bytes() or 0
        assert storescu(reader.source.port, path).returncode == 0
        wait_for(lambda: reader.count == 301, 120)
        peak, after = peak_bytes() or 0, resident_bytes() or 0
        assert reader.source.skipped.count == 0
    most, left = (peak - before) / _MIB, (after - before) / _MIB
    with capfd.disabled():
        print(f"\na 300 MiB instance: {most:.0f} MiB more at most, {left:.0f} MiB more afterwards")
    assert most < 60
