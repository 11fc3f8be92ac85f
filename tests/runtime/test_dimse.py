"""The DICOM receiver, with dcmtk's and Orthanc's senders on loopback."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom")
import pydicom
from pydicom.uid import generate_uid
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import client, facts, free_port, make_series, need, orthanc, ready, receiving, run, storescu
from runtime.waiting import Reader, wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.errors import MissingExtraError, SourceError
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sources import open_source
from edgemamba.runtime.sources.dimse import open_dimse

# ------------------------------------------------------------------------------------------------------------- what it gives


def test_same_pixels_as_from_the_file(tmp_path: Path) -> None:
    need("storescu")
    files = [
        dicom_file(name) for name in ("CT_small.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm")
    ]
    expected = [frame for path in files for frame in open_source(path)]
    with receiving(tmp_path / "spool") as reader:
        sent = storescu(reader.source.port, *files)
        assert sent.returncode == 0, sent.stderr
        frames = list(reader.wait(len(expected)))
        wait_for(lambda: not ready(tmp_path / "spool"))
    assert len(expected) == 33
    for index, (frame, original) in enumerate(zip(frames, expected, strict=True)):
        assert (frame.pixels == original.pixels).all()
        assert frame.index == index
        assert frame.metadata == original.metadata
    assert [frame.timestamp for frame in frames] == sorted(frame.timestamp for frame in frames)
    assert frames[2].timestamp - frames[1].timestamp == pytest.approx(expected[2].timestamp - expected[1].timestamp)


def test_no_patient_in_frames_or_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need("storescu")
    caplog.set_level(logging.DEBUG)
    paths = make_series(tmp_path / "series", 2)
    broken = pydicom.dcmread(paths[1])
    del broken.Rows
    broken.save_as(paths[1])
    with receiving(tmp_path / "spool") as reader:
        assert storescu(reader.source.port, paths[0]).returncode == 0
        storescu(reader.source.port, paths[1])
        frames = list(reader.wait(1))
        assert facts(reader)["refused_unreadable"] == 1
        shown = caplog.text + repr(frames) + json.dumps([frame.metadata for frame in frames]) + str(facts(reader))
    assert "(0028,0010) Rows is missing" in caplog.text
    uid = str(broken.SOPInstanceUID)
    assert hashed(uid) in caplog.text
    assert "Secret" not in shown
    assert "SECRET" not in shown
    assert uid not in shown
    assert str(broken.StudyInstanceUID) not in shown


def test_through_a_stream(tmp_path: Path, colour_engine: Any) -> None:
    need("storescu")
    source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}")
    sender = threading.Thread(target=storescu, args=(source.port, dicom_file("SC_rgb_small_odd.dcm")))
    sender.start()
    (result,) = list(stream(source, colour_engine, max_frames=1))
    sender.join()
    assert result.frame.source.startswith("uid-")


def test_orthanc_sends(tmp_path: Path) -> None:
    paths = make_series(tmp_path / "series", 4)
    port = free_port()
    with (
        orthanc(tmp_path / "orthanc", {"edge": ["EM", "127.0.0.1", port]}) as peer,
        contextlib.closing(
            Reader(open_dimse(f"dimse://EM@127.0.0.1:{port}?folder={tmp_path}/s&allow=ORTHANC"))
        ) as reader,
    ):
        peer.rest("/modalities/edge/echo", b"{}")
        answer = peer.rest("/modalities/edge/store", json.dumps(peer.upload(*paths)).encode())
        assert (answer["InstancesCount"], answer["FailedInstancesCount"]) == (4, 0)
        received = {frame.source for frame in reader.wait(4)}
    assert received == {hashed(str(pydicom.dcmread(path).SOPInstanceUID)) for path in paths}


# -------------------------------------------------------------------------------------------------------- what it refuses


def test_echo_titles_and_addresses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need("echoscu", "storescu")
    with receiving(tmp_path, "&allow=CT1,CT2") as reader:
        port = reader.source.port
        assert run("echoscu", "-aet", "CT2", "-aec", "EM", "127.0.0.1", port).returncode == 0
        refused = run("echoscu", "-aet", "CT3", "-aec", "EM", "127.0.0.1", port)
        assert "Calling AE Title Not Recognized" in refused.stderr
        refused = run("echoscu", "-aet", "CT1", "-aec", "OTHER", "127.0.0.1", port)
        assert "Called AE Title Not Recognized" in refused.stderr
        wait_for(lambda: facts(reader)["refused_title"] == 2)
    assert "refused: an association from CT3, which allow= does not name" in caplog.text
    with receiving(tmp_path, "&from=10.0.0.0/8,fd00::/8") as reader:
        assert run("echoscu", "-aec", "EM", "127.0.0.1", reader.source.port).returncode != 0
        wait_for(lambda: facts(reader)["refused_address"] == 1)
        assert facts(reader)["associations"] == 0
    with receiving(tmp_path, "&from=127.0.0.0/8") as reader:
        assert run("echoscu", "-aec", "EM", "127.0.0.1", reader.source.port).returncode == 0


def test_too_large_is_refused_while_it_arrives(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    dataset.Rows = dataset.Columns = 2048  # 8 MiB
    dataset.PixelData = bytes(2 * 2048 * 2048)
    with receiving(tmp_path, "&max_mb=1") as reader:
        association = client(reader.source.port)
        with contextlib.suppress(RuntimeError):
            assert "Status" not in association.send_c_store(dataset)
        wait_for(lambda: facts(reader)["refused_size"] == 1)
        wait_for(lambda: association.is_aborted)
        wait_for(lambda: not list((tmp_path / "incoming").iterdir()))
        association = client(reader.source.port)  # everyone else goes on
        assert association.send_c_store(dicom_file("CT_small.dcm")).Status == 0
        association.release()
        reader.wait(1)


def test_largest_part_on_disk_stays_below_the_limit(tmp_path: Path) -> None:
    """The part is cut off at the limit: of 8 MiB that are sent, never more than 1 MiB is written."""
    from edgemamba.runtime.dicom_network import reception

    sizes: list[int] = []
    discard = reception.Part.discard

    def measured(part: Any) -> None:
        sizes.append(part.size)
        discard(part)

    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    dataset.Rows = dataset.Columns = 2048
    dataset.PixelData = bytes(2 * 2048 * 2048)
    with pytest.MonkeyPatch.context() as patch, receiving(tmp_path, "&max_mb=1") as reader:
        patch.setattr(reception.Part, "discard", measured)
        association = client(reader.source.port)
        with contextlib.suppress(RuntimeError):
            association.send_c_store(dataset)
        wait_for(lambda: facts(reader)["refused_size"] == 1)
    assert 0 < max(sizes) <= (1 << 20) + 1024


def test_full_spool(tmp_path: Path) -> None:
    source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}&spool_mb=0.05")  # one slice is 39 kB
    try:
        association = client(source.port)
        paths = make_series(tmp_path / "series", 2)
        assert association.send_c_store(paths[0]).Status == 0x0000
        assert association.send_c_store(paths[1]).Status == 0xA700
        frames = iter(source)
        next(frames)  # the second is asked for, so the first is processed
        threading.Timer(0.5, lambda: association.send_c_store(paths[1])).start()
        assert next(frames).index == 1
        association.release()
        assert source.describe()["refused_full"] == 1
    finally:
        source.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    run("umount", folder)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """What does not fit is refused with A700H and leaves nothing; what was acknowledged is whole."""
    source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={small_disk}/spool")
    try:
        association = client(source.port)
        statuses = [association.send_c_store(path).Status for path in make_series(tmp_path / "series", 9)]
        taken = statuses.count(0x0000)
        assert statuses == [0x0000] * taken + [0xA700] * (9 - taken)
        assert 0 < taken < 9
        assert not list((small_disk / "spool" / "incoming").iterdir())
        frames = iter(source)
        for _ in range(taken):
            assert next(frames).pixels.shape == (128, 128, 1)
        assert association.send_c_store(tmp_path / "series" / "001.dcm").Status == 0x0000  # there is room again
        association.release()
        assert source.describe()["refused_full"] == 9 - taken
    finally:
        source.close()


def test_same_instance_twice_waits_once(tmp_path: Path) -> None:
    source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}")
    association = client(source.port)
    for _ in range(3):
        assert association.send_c_store(dicom_file("CT_small.dcm")).Status == 0
    association.release()
    assert len(ready(tmp_path)) == 1
    source.close()


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SourceError, match=rf"dimse://EM@127\.0\.0\.1:{port} cannot listen: Address already in use"):
            open_dimse(f"dimse://EM@127.0.0.1:{port}?folder={tmp_path}")
    with receiving(tmp_path), pytest.raises(SourceError, match="in use by another receiver"):
        open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dimse://127.0.0.1:11112", "is not an AE title"),
        ("dimse://A-TITLE-THAT-IS-TOO-LONG@127.0.0.1:11112", "is not an AE title"),
        ("dimse://EM@127.0.0.1", "give dimse://AET@host:port"),
        ("dimse://EM@127.0.0.1:99999", "port is not a number"),
        (
            "dimse://EM@127.0.0.1:0?colour=red",
            "unknown option colour; known are allow, ca, cert, folder, from, key, max_mb, spool_mb",
        ),
        ("dimse://EM@127.0.0.1:0?from=nowhere", "give addresses or networks"),
        ("dimse://EM@127.0.0.1:0?max_mb=-3", "max_mb=-3: give a positive number"),
        ("dimse://EM@127.0.0.1:0?folder=/proc/none", "/proc/none cannot be used as a spool"),
        ("dimse://EM@192.0.2.1:11112", "cannot listen: .*; give an address of this machine"),
    ],
)
def test_bad_urls(url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(SourceError, match=message) as caught:
        open_dimse(url)
    assert "\n" not in str(caught.value)


def test_open_to_everyone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for options in ("", "&allow=CT1", "&from=10.0.0.0/8"):
        open_dimse(f"dimse://EM@0.0.0.0:0?folder={tmp_path}{options}").close()
    open_dimse(f"dimse://EM@localhost:0?folder={tmp_path}").close()
    assert caplog.text.count("takes instances from whoever reaches it") == 1


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(
        MissingExtraError, match="pynetdicom is needed for receiving DICOM and is not installed: pip install"
    ):
        open_dimse("dimse://EM@127.0.0.1:0")


def test_undecodable_instance_is_put_aside(tmp_path: Path) -> None:
    """Its header is good, so it was acknowledged; its pixels are not."""
    dataset = pydicom.dcmread(dicom_file("JPEG2000.dcm"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    from pydicom.encaps import encapsulate

    dataset.PixelData = encapsulate([bytes(1000)])
    dataset.save_as(tmp_path / "bad.dcm")
    need("storescu")
    with receiving(tmp_path / "spool") as reader:
        assert storescu(reader.source.port, tmp_path / "bad.dcm", dicom_file("CT_small.dcm")).returncode == 0
        (frame,) = reader.wait(1)
        assert frame.index == 1
        assert reader.source.skipped.count == 1
        assert len(list((tmp_path / "spool" / "unreadable").iterdir())) == 1
