"""DICOM objects on their way: to dcmtk and Orthanc, by C-STORE and STOW-RS, through peers that are away, full or picky."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom")
import pydicom
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import dcmqrscp, free_port, make_series, orthanc, storescp
from runtime.test_dicom_objects import feed, given_up, write_all
from runtime.waiting import wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.dicom_network import outbox
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks.dicom_objects import open_dicom_sink
from edgemamba.runtime.sources import open_source


def test_orthanc_takes_both_ways_into_the_patients_study(tmp_path: Path) -> None:
    make_series(tmp_path / "series", 2)
    with orthanc(tmp_path / "orthanc") as peer:
        peer.upload(*(tmp_path / "series").iterdir())
        secret = f"{peer.user}:pass%3Aw%40rd"
        uris = (
            f"dimse://ORTHANC@127.0.0.1:{peer.dicom_port}?queue={tmp_path}/q1",
            f"dicomweb://{secret}@127.0.0.1:{peer.http_port}/dicom-web?queue={tmp_path}/q2",
        )
        for uri in uris:
            with open_source(tmp_path / "series") as source:
                sink = open_dicom_sink(uri, include_phi=True)
                write_all(sink, source)
            assert "4 sent, 0 wait, 0 refused, 0 dropped" in sink.describe()
            assert "pass" not in sink.describe()
        (study,) = peer.rest("/studies")
        kinds = [peer.rest(f"/series/{series}") for series in peer.rest(f"/studies/{study}")["Series"]]
        found = sorted((series["MainDicomTags"]["Modality"], len(series["Instances"])) for series in kinds)
        assert found == [("CT", 2), ("OT", 2), ("OT", 2), ("SR", 2), ("SR", 2)]


def test_large_pictures_by_stow(tmp_path: Path) -> None:
    """Beyond the megabyte from which dicomweb-client sends in chunks."""
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    dataset.Rows = dataset.Columns = 900
    dataset.PixelData = np.arange(900 * 900, dtype=np.uint16).tobytes()
    dataset.save_as(tmp_path / "large.dcm")
    with orthanc(tmp_path / "orthanc") as peer, open_source(tmp_path / "large.dcm") as source:
        uri = f"dicomweb://{peer.user}:pass%3Aw%40rd@127.0.0.1:{peer.http_port}/dicom-web?queue={tmp_path}/q&objects=sc"
        sink = open_dicom_sink(uri)
        write_all(sink, source)
        assert "1 sent" in sink.describe()
        (instance,) = peer.rest("/instances")
        assert peer.rest(f"/instances/{instance}/tags?simplify")["Rows"] == "900"


def test_stow_with_wrong_credentials_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with orthanc(tmp_path / "orthanc") as peer, open_source(dicom_file("CT_small.dcm")) as source:
        uri = f"dicomweb://{peer.user}:falseword@127.0.0.1:{peer.http_port}/dicom-web?queue={tmp_path}/q&objects=sr"
        sink = open_dicom_sink(uri)
        feed(sink, source)
        wait_for(lambda: "HTTP 401" in caplog.text)
        assert "0 sent, 1 wait" in given_up(sink)
    assert "falseword" not in caplog.text + sink.describe()


def test_storescp_and_dcmqrscp_take_them(tmp_path: Path) -> None:
    make_series(tmp_path / "series", 2)
    for name, peer in (("STORESCP", storescp), ("QRSCP", dcmqrscp)):
        with peer(tmp_path / name / "in") as port, open_source(tmp_path / "series") as source:
            sink = open_dicom_sink(f"dimse://{name}@127.0.0.1:{port}?queue={tmp_path}/q&calling=EDGE")
            write_all(sink, source)
            assert "4 sent, 0 wait" in sink.describe()
        received = [pydicom.dcmread(path) for path in (tmp_path / name / "in").iterdir() if path.name != "index.dat"]
        assert len(received) == 4
        assert {item.PatientIdentityRemoved for item in received} == {"YES"}


def test_peer_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects wait on disk through the end of the process, and are sent when the peer is back."""
    monkeypatch.setattr(outbox, "_FIRST_WAIT", 0.02)
    uri = f"dimse://STORESCP@127.0.0.1:{free_port()}?queue={tmp_path}/q"
    with open_source(dicom_file("CT_small.dcm")) as source:
        sink = open_dicom_sink(uri)
        feed(sink, source)
        wait_for(lambda: "does not answer; trying again" in caplog.text)
        assert "0 sent, 2 wait" in given_up(sink)
    with storescp(tmp_path / "in") as port:
        again = open_dicom_sink(f"dimse://STORESCP@127.0.0.1:{port}?queue={tmp_path}/q")
        again.close()
        assert "2 sent, 0 wait" in again.describe()
    assert len(list((tmp_path / "in").iterdir())) == 2


def test_full_queue_drops_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"dimse://STORESCP@127.0.0.1:{free_port()}?queue={tmp_path}/q&max_mb=0.01&objects=sr"
    sink = open_dicom_sink(uri)
    make_series(tmp_path / "series", 4)
    with open_source(tmp_path / "series") as source:
        feed(sink, source)
    assert sink._outbox is not None
    sink._outbox.close(patience=0.1)
    waiting = len(list((tmp_path / "q" / "waiting").iterdir()))
    assert 0 < waiting < 4
    assert f"{waiting} wait, 0 refused, {4 - waiting} dropped" in sink.describe()
    assert "its queue is full; 1 objects were dropped" in caplog.text


def test_what_the_peer_refuses_is_put_aside(tmp_path: Path) -> None:
    """A real SCP that takes no reports: our own receiver, which takes pictures only."""
    from edgemamba.runtime.sources.dimse import open_dimse

    with open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}/spool") as receiver:
        port = receiver.port
        with open_source(dicom_file("CT_small.dcm")) as source:
            sink = open_dicom_sink(f"dimse://EM@127.0.0.1:{port}?queue={tmp_path}/q")
            write_all(sink, source)
        assert "1 sent, 0 wait, 1 refused" in sink.describe()
        assert len(list((tmp_path / "q" / "refused").iterdir())) == 1
        frame = next(iter(receiver))
        assert frame.pixels.shape[2] == 3


def test_two_processes_cannot_share_a_queue(tmp_path: Path) -> None:
    uri = f"dimse://PACS@127.0.0.1:{free_port()}?queue={tmp_path}"
    first = open_dicom_sink(uri)
    with pytest.raises(SinkError, match="is the queue of another process"):
        open_dicom_sink(uri)
    first.close()


def test_from_receiver_to_archive(tmp_path: Path, colour_engine: Any) -> None:
    """C-STORE in, results out as reports by C-STORE, and the public log line beside them without a patient."""
    from runtime.dicom_peers import need, storescu

    from edgemamba.runtime.sinks import JsonlSink
    from edgemamba.runtime.sources.dimse import open_dimse

    need("storescu")
    paths = make_series(tmp_path / "series", 3)
    with storescp(tmp_path / "in") as port:
        source = open_dimse(f"dimse://EM@127.0.0.1:0?folder={tmp_path}/spool")
        assert storescu(source.port, *paths).returncode == 0
        archive = open_dicom_sink(f"dimse://STORESCP@127.0.0.1:{port}?queue={tmp_path}/q&objects=sr")
        lines = JsonlSink(tmp_path / "out.jsonl")
        results = list(stream(source, colour_engine, sinks=[archive, lines], max_frames=3))
    received = [pydicom.dcmread(path) for path in (tmp_path / "in").iterdir()]
    evidence = [item.CurrentRequestedProcedureEvidenceSequence[0] for item in received]
    referred = {
        str(item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in evidence
    }
    assert referred == {str(pydicom.dcmread(path).SOPInstanceUID) for path in paths}
    text = (tmp_path / "out.jsonl").read_text()
    assert [json.loads(line)["source"] for line in text.splitlines()] == [item.frame.source for item in results]
    assert "SECRET" not in text
    assert not any(uid in text for uid in referred)
    assert {item.ManufacturerModelName for item in received} == {"colour"}
