"""What the DICOM receiver bears: garbage, clients that die or stay silent, fifty at once, SIGKILL."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom")
import pydicom
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import client, facts, make_series, ready, receiving
from runtime.made_dicom import of_another_kind
from runtime.waiting import wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sources.dimse import open_dimse

_AARQ_LONG = b"\x01\x00\xff\xff\xff\xf0" + b"A" * 100_000
_JUNK = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "long": _AARQ_LONG,
    "zeros": bytes(4096),
    "request": b"\x01\x00\x00\x00\x00\x50" + bytes(range(80)),
    "data first": b"\x04\x00\x00\x00\x00\x10" + bytes(16),
    "random": np.random.default_rng(0).bytes(1 << 16),
}


def test_garbage(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with receiving(tmp_path) as reader:
        for junk in _JUNK.values():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", reader.source.port)) as connection,
            ):
                connection.sendall(junk)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        wait_for(lambda: facts(reader)["garbage"] >= len(_JUNK))
        association = client(reader.source.port)
        assert association.send_c_store(dicom_file("CT_small.dcm")).Status == 0
        association.release()
        reader.wait(1)
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    lines = [record.getMessage() for record in caplog.records if record.name == "edgemamba.runtime"]
    assert len(lines) == len(_JUNK)
    assert set(lines) == {"refused: a connection from 127.0.0.1 that asked for no DICOM association"}


def test_garbage_inside_an_association(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Well-formed P-DATA-TF PDUs whose content is none: the association is aborted, the receiver goes on."""
    rng = np.random.default_rng(1)
    with receiving(tmp_path) as reader:
        for control in (0, 1, 2, 3, 0xFF):
            association = client(reader.source.port)
            value = bytes([1, control]) + rng.bytes(200)
            item = len(value).to_bytes(4, "big") + value
            association.dul.socket.send(b"\x04\x00" + len(item).to_bytes(4, "big") + item)
            if control & 2:
                wait_for(lambda a=association: a.is_aborted)
            else:
                association.abort()
        association = client(reader.source.port)
        assert association.send_c_store(dicom_file("CT_small.dcm")).Status == 0
        association.release()
        reader.wait(1)
    assert "Traceback" not in capfd.readouterr().err


def test_an_instance_whose_uids_are_damaged(tmp_path: Path) -> None:
    """Elements that pydicom cannot parse. The command's UID names the instance; the data set's own is not asked for."""
    import pynetdicom
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom.dimse_primitives import C_STORE

    (path,) = make_series(tmp_path / "series", 1)
    uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
    for tag in (b"\x08\x00\x18\x00UI", b"\x20\x00\x0d\x00UI"):
        of_another_kind(path, tag)
    content = path.read_bytes()
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = pynetdicom.sop_class.CTImageStorage, uid
    request.DataSet = io.BytesIO(content[content.index(b"\x08\x00\x05\x00CS") :])
    entity = pynetdicom.AE("CLIENT")
    entity.add_requested_context(pynetdicom.sop_class.CTImageStorage, ExplicitVRLittleEndian)
    with receiving(tmp_path / "spool") as reader:
        association = entity.associate("127.0.0.1", reader.source.port, ae_title="EM")
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        assert reader.wait(1)[0].source == hashed(uid)
        association.release()
        assert client(reader.source.port).send_c_store(dicom_file("CT_small.dcm")).Status == 0
        reader.wait(2)


def test_fifty_associations_at_once(tmp_path: Path) -> None:
    count = 50
    paths = make_series(tmp_path / "series", count)
    with receiving(tmp_path / "spool") as reader:
        associations = [client(reader.source.port, f"CLIENT{i}") for i in range(count)]
        assert all(association.is_established for association in associations)
        statuses: dict[int, int] = {}

        def send(i: int) -> None:
            statuses[i] = associations[i].send_c_store(paths[i]).get("Status", -1)
            associations[i].release()

        senders = [threading.Thread(target=send, args=(i,)) for i in range(count)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert set(statuses.values()) == {0}
        frames = reader.wait(count)
        assert facts(reader)["associations"] == count
    assert len({frame.source for frame in frames}) == count


def test_nothing_is_left_of_associations(tmp_path: Path) -> None:
    """Whole, broken off and aborted by both sides at once: threads, descriptors and notes are gone afterwards."""
    with receiving(tmp_path) as reader:
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for i in range(30):
            association = client(reader.source.port)
            if i % 3 == 0:
                association.send_c_store(dicom_file("CT_small.dcm"))
                association.release()
            elif i % 3 == 1:
                association.dul.socket.send(b"\x04\x00\x00\x00\x00\x08\x00\x00\x00\x04\x01\x03\xff\xff")
                association.abort()
            else:
                association.abort()
        wait_for(lambda: threading.active_count() <= threads)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
        assert not reader.source._receiver._peers
        assert not list((tmp_path / "incoming").iterdir())


_SERVER = """
import sys, time
from edgemamba.runtime import stream
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sources.dimse import open_dimse
source = open_dimse("dimse://EM@127.0.0.1:0?folder=" + sys.argv[1])
print(source.port, flush=True)
time.sleep(120)
"""


def half_received(spool: Path) -> bool:
    """Whether the instance that is held half way has come so far; others come and go meanwhile."""
    for path in (spool / "incoming").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > 10_000:
                return True
    return False


class HalfWay:
    """A proxy that forwards the first ``limit`` bytes of a client to a server, and then holds the line."""

    def __init__(self, port: int, limit: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._target, self._limit = port, limit
        self.held = threading.Event()  # it has forwarded all that it will
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        self._ends = (near, far)
        threading.Thread(target=self.back, args=(far, near), daemon=True).start()
        left = self._limit
        while left and (data := near.recv(min(left, 4096))):
            far.sendall(data)
            left -= len(data)
        self.held.set()

    def cut(self) -> None:
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def back(far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(4096):
                near.sendall(data)


def test_killed_while_receiving(tmp_path: Path) -> None:
    """SIGKILL with one instance half way and others being sent: all that was acknowledged is there, and nothing else is read."""
    spool = tmp_path / "spool"
    paths = make_series(tmp_path / "series", 60)
    environment = {**os.environ, "EDGEMAMBA_SALT": "test"}
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, spool], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    acknowledged: list[Path] = []
    half = HalfWay(port, 25_000)

    def send(some: list[Path], to: int) -> None:
        association = client(to)
        for path in some:
            with contextlib.suppress(RuntimeError):
                if association.send_c_store(path).get("Status", -1) == 0:
                    acknowledged.append(path)

    threads = [threading.Thread(target=send, args=(paths[i:-1:3], port), daemon=True) for i in range(3)]
    threads.append(threading.Thread(target=send, args=(paths[-1:], half.port), daemon=True))
    for thread in threads:
        thread.start()
    assert half.held.wait(30)
    wait_for(lambda: half_received(spool))
    wait_for(lambda: len(acknowledged) >= 6)
    server.send_signal(signal.SIGKILL)
    server.wait()
    for thread in threads[:-1]:
        thread.join(30)

    def uid(path: Path) -> str:
        return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)

    assert paths[-1] not in acknowledged
    assert list((spool / "incoming").glob("*.part"))
    on_disk = {uid(path) for path in ready(spool)}
    assert {uid(path) for path in acknowledged} <= on_disk
    assert len(on_disk) <= len(acknowledged) + 3  # written, and killed before the answer: at most one per association
    with receiving(spool) as reader:
        assert facts(reader)["recovered"] == len(on_disk)
        frames = reader.wait(len(on_disk))
        assert not list((spool / "incoming").iterdir())
        wait_for(lambda: not ready(spool))
        assert reader.source.skipped.count == 0
        assert len(frames) == len(on_disk)


def test_client_that_dies_half_way(tmp_path: Path) -> None:
    with receiving(tmp_path) as reader:
        half = HalfWay(reader.source.port, 25_000)
        sender = threading.Thread(target=lambda: client(half.port).send_c_store(dicom_file("CT_small.dcm")))
        sender.start()
        wait_for(lambda: half_received(tmp_path))
        half.cut()
        wait_for(lambda: not list((tmp_path / "incoming").iterdir()))
        sender.join()
        assert facts(reader)["received"] == 0
        assert reader.frames == []


def test_clients_that_stay_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemamba.runtime.dicom_network import receiver

    monkeypatch.setattr(receiver, "_ASSOCIATE_TIMEOUT", 0.3)
    monkeypatch.setattr(receiver, "_IDLE_TIMEOUT", 0.5)
    with receiving(tmp_path) as reader:
        with socket.create_connection(("127.0.0.1", reader.source.port)) as silent:
            association = client(reader.source.port)
            assert silent.recv(1) == b""  # it is hung up on
        wait_for(lambda: association.is_aborted)
        wait_for(lambda: facts(reader)["garbage"] == 1)


def test_clients_that_stop_in_the_middle_of_a_pdu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and within an association: they hold no thread for longer than the limit."""
    from edgemamba.runtime.dicom_network import receiver

    monkeypatch.setattr(receiver, "_PDU_TIMEOUT", 0.3)
    with receiving(tmp_path) as reader:
        with socket.create_connection(("127.0.0.1", reader.source.port)) as slow:
            slow.sendall(b"\x01\x00\x00\x00\x00\x64abc")
            slow.settimeout(20)
            assert slow.recv(1) == b""
        association = client(reader.source.port)
        association.dul.socket.send(b"\x04\x00\x00\x00\x10\x00")
        wait_for(lambda: association.is_aborted)
        wait_for(lambda: not reader.source._receiver._peers)


def test_more_associations_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemamba.runtime.dicom_network import receiver

    monkeypatch.setattr(receiver, "MOST_ASSOCIATIONS", 3)
    with receiving(tmp_path) as reader:
        associations = [client(reader.source.port) for _ in range(4)]
        assert [association.is_established for association in associations] == [True, True, True, False]
        assert associations[3].is_rejected
        wait_for(lambda: facts(reader)["refused_busy"] == 1)
        associations[0].release()
        wait_for(lambda: client(reader.source.port).is_established)


def test_refusals_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with receiving(tmp_path, "&from=10.0.0.0/8") as reader:
        for i in range(70):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", reader.source.port)) as connection,
            ):
                connection.recv(1)
            wait_for(lambda i=i: facts(reader)["refused_address"] == i + 1)
    lines = [record.getMessage() for record in caplog.records if record.name == "edgemamba.runtime"]
    assert len(lines) == 22
    assert lines[-1].endswith("; 64 of this kind so far")


def test_only_what_was_processed_leaves_the_spool(tmp_path: Path) -> None:
    url = f"dimse://EM@127.0.0.1:0?folder={tmp_path}"
    source = open_dimse(url)
    association = client(source.port)
    for path in make_series(tmp_path / "series", 3):
        association.send_c_store(path)
    association.release()
    source.confirmed = True
    frames = iter(source)
    first, second = next(frames), next(frames)
    assert len(ready(tmp_path)) == 3
    source.done(first)
    assert len(ready(tmp_path)) == 2
    source.close()
    again = open_dimse(url)
    assert next(iter(again)).source == second.source
    again.close()


def test_what_is_confirmed_leaves_nothing_behind(tmp_path: Path, colour_engine: Any) -> None:
    """Also of the last instance, after which the source is not asked again; and of one that is confirmed late."""
    source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}")
    association = client(source.port)
    for path in make_series(tmp_path / "series", 3):
        association.send_c_store(path)
    association.release()
    results = list(stream(source, colour_engine, max_frames=3))
    assert len(results) == 3
    source.done(results[-1].frame)  # as the stream does when all sinks have it
    assert ready(tmp_path) == []
