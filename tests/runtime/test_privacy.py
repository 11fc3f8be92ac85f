"""What others may see: no UID of an instance, no metadata that could name a patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from runtime.collector import Collector

from edgemamba.runtime import stream
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.privacy import LogFilter, Redactor, guard_log, hashed, without_uids
from edgemamba.runtime.sinks import JsonlSink
from edgemamba.runtime.sources import Source

UID = "1.2.826.0.1.3680043.8.498.84301"
METADATA = {
    "modality": "MR",
    "patient_name": "Doe^Jane",
    "patient_id": "4711",
    "study_date": "20200101",
    "sop_instance_uid": UID,
    "transfer_syntax": "1.2.840.10008.1.2.1",
    "x_line": 3,
}


@pytest.fixture(autouse=True)
def _fixed_salt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from edgemamba.runtime.dicom_network import pseudonyms

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("EDGEMAMBA_SALT", "a salt for tests")
    pseudonyms._salt.cache_clear()
    yield
    pseudonyms._salt.cache_clear()
    guard_log(include_phi=True)


@dataclass(frozen=True)
class FrameWithHeader(Frame):
    """As the DICOM sources' frames: more than a frame, for DICOM sinks only."""

    header: str = "Doe^Jane"


class DicomLike(Source):
    def __init__(self) -> None:
        super().__init__(f"{UID}.dcm")

    def __iter__(self) -> Iterator[Frame]:
        yield FrameWithHeader(np.zeros((8, 8, 3), np.uint8), 0, 0, self.name, METADATA)
        yield FrameWithHeader(np.zeros((8, 8, 7), np.uint8), 1, 0, self.name, METADATA)


class IdentifiedCollector(Collector):
    identified: ClassVar[bool] = True


@pytest.mark.parametrize(
    "text",
    ["/in/{}.dcm is cut short", "{}_{}", "MR.{}.dcm", "CT{}", "a/{}/{}.7", "{}", "10.0.0.1:104 sent {}"],
)
def test_uids_in_text(text: str) -> None:
    public = without_uids(text.replace("{}", UID))
    assert UID not in public
    assert public.count("uid-") == text.count("{}")
    assert without_uids(public) == public


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:104 1.2.840.10008.1.2.4.50 version 1.2.3.4 at 10:20", "0.12.3.4", "3.14.15.92.65", "took 1.25 s"],
)
def test_other_numbers_stay(text: str) -> None:
    assert without_uids(text) == text


def test_hashes_are_salted(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemamba.runtime.dicom_network import pseudonyms

    first = hashed(UID)
    assert first == hashed(UID)
    monkeypatch.setenv("EDGEMAMBA_SALT", "another")
    pseudonyms._salt.cache_clear()
    assert hashed(UID) != first


def test_sinks_get_public_results_and_dicom_sinks_all(tmp_path: Path, colour_engine: Any) -> None:
    public, identified, path = Collector(), IdentifiedCollector(), tmp_path / "o.jsonl"
    (own,) = stream(DicomLike(), colour_engine, sinks=[public, identified, JsonlSink(path)])
    assert own.frame.metadata == METADATA
    assert identified.results[0].frame is own.frame
    frame = public.results[0].frame
    assert type(frame) is Frame
    assert frame.source == f"{hashed(UID)}.dcm"
    assert frame.metadata == {
        "modality": "MR",
        "sop_instance_uid": hashed(UID),
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "x_line": 3,
    }
    text = path.read_text()
    assert not [value for value in ("Doe", "4711", "20200101", UID) if value in text]


def test_all_of_it_on_demand(tmp_path: Path, colour_engine: Any) -> None:
    path = tmp_path / "o.jsonl"
    list(stream(DicomLike(), colour_engine, sinks=[JsonlSink(path)], include_phi=True))
    line = json.loads(path.read_text())
    assert line["metadata"]["patient_name"] == "Doe^Jane"
    assert line["source"] == f"{UID}.dcm"


def test_the_log_has_hashes(colour_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    results = stream(DicomLike(), colour_engine)
    list(results)
    assert hashed(UID) in caplog.text
    assert UID not in caplog.text
    assert results.report.skipped == 1


def test_the_filter_keeps_other_records_as_they_are() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s of %d", ("one", 2), None)
    assert LogFilter().filter(record)
    assert record.args == ("one", 2)


def test_redactor_leaves_everything_where_asked() -> None:
    redactor = Redactor(include_phi=True)
    assert redactor.text(UID) == UID
    assert redactor.metadata(METADATA) is METADATA
    with pytest.raises(SinkError):
        raise SinkError(redactor.text(UID))
