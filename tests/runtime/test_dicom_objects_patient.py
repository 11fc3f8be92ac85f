"""DICOM objects name the patient where asked, and nobody otherwise, also where attributes are damaged."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom")
import pydicom
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import make_series
from runtime.test_dicom_objects import OTHERS, SECRETS, objects, patient_file, write_all

from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sinks.dicom_objects import DicomSink
from edgemamba.runtime.sources import open_source


def test_no_patient_unless_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    original = patient_file(tmp_path / "source.dcm")
    with open_source(tmp_path / "source.dcm") as source:
        write_all(DicomSink(tmp_path / "out"), source)
    for path in (tmp_path / "out").iterdir():
        raw = path.read_bytes()
        for value in (*SECRETS.values(), *OTHERS.values()):
            if len(value) > 1:
                assert value.encode("latin-1") not in raw
                assert value.encode() not in raw
        written = pydicom.dcmread(path)
        assert written.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in written.DeidentificationMethodCodeSequence] == ["113100", "113110"]
        assert written.LongitudinalTemporalInformationModified == "REMOVED"
        assert written.PatientID.startswith("EM-")
        assert written.ContentDate == "19000101"
        assert not written.StudyDate
        assert original.SOPInstanceUID.encode() in raw
        assert path.name.endswith(f"{hashed(original.SOPInstanceUID)[4:]}.dcm")
    assert original.SOPInstanceUID not in caplog.text


def test_the_patient_where_asked(tmp_path: Path) -> None:
    patient_file(tmp_path / "source.dcm")
    with open_source(tmp_path / "source.dcm") as source:
        write_all(DicomSink(tmp_path / "out", include_phi=True), source)
    for path in (tmp_path / "out").iterdir():
        written = pydicom.dcmread(path)
        assert {keyword: str(written[keyword].value) for keyword in SECRETS} == SECRETS
        assert "PatientIdentityRemoved" not in written
        raw = path.read_bytes()
        assert not any(value.encode() in raw for value in OTHERS.values())


def test_name_in_other_letters(tmp_path: Path) -> None:
    """A name of two representations in escaped character sets arrives as the same text in UTF-8."""
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset.save_as(tmp_path / "source.dcm")
    with open_source(tmp_path / "source.dcm") as source:
        write_all(DicomSink(tmp_path / "out", include_phi=True), source)
    for path in (tmp_path / "out").iterdir():
        assert str(pydicom.dcmread(path).PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_burned_in_annotation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = patient_file(tmp_path / "source.dcm")
    dataset.BurnedInAnnotation = "YES"
    dataset.save_as(tmp_path / "source.dcm")
    with open_source(tmp_path / "source.dcm") as source:
        sink = DicomSink(tmp_path / "out")
        write_all(sink, source)
        assert (len(objects(tmp_path / "out", "sr")), len(objects(tmp_path / "out", "sc"))) == (1, 0)
        assert "1 skipped" in sink.describe()
        write_all(DicomSink(tmp_path / "phi", include_phi=True), source)
    assert "its pixels show who it is" in caplog.text
    assert objects(tmp_path / "phi", "sc")[0].BurnedInAnnotation == "YES"


def test_damaged_attributes_are_left_out(tmp_path: Path) -> None:
    """Values that break their form would make our objects invalid; so would a missing UID, which is said."""
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    with pydicom.config.disable_value_validation():
        dataset.PatientSex, dataset.StudyDate, dataset.StudyTime, dataset.PatientBirthDate = "X", "gone", "99", "1961"
        dataset.save_as(tmp_path / "source.dcm")
        del dataset.StudyInstanceUID
        dataset.save_as(tmp_path / "orphan.dcm")
    with open_source(tmp_path / "source.dcm") as source:
        write_all(DicomSink(tmp_path / "out", include_phi=True), source)
    (report,) = objects(tmp_path / "out", "sr")
    assert not any(report[keyword].value for keyword in ("PatientSex", "StudyDate", "StudyTime", "PatientBirthDate"))
    with open_source(tmp_path / "orphan.dcm") as source:
        sink = DicomSink(tmp_path / "none")
        write_all(sink, source)
    assert sink.skipped == 1
    assert not list((tmp_path / "none").iterdir())


def test_libraries_do_not_quote_values(tmp_path: Path) -> None:
    """pydicom and highdicom warn with the value itself; in a process of its own, because pytest sets the filters back."""
    dataset = patient_file(tmp_path / "source.dcm")
    with pydicom.config.disable_value_validation():
        dataset.StudyTime = "11 Secret 22"
        dataset.PatientName = "Sec=ret=Pat=ient"
        dataset.save_as(tmp_path / "source.dcm")
    code = (
        "import sys, numpy; from runtime.test_dicom_objects import DicomSink, open_source, write_all\n"
        "with open_source(sys.argv[1]) as s: write_all(DicomSink(sys.argv[2], include_phi=True), s)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "source.dcm", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert said.returncode == 0, said.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert "Secret" not in said.stderr + said.stdout
    assert "ient" not in said.stderr + said.stdout


def test_what_no_object_can_be_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are written, and nothing of what was wrong is quoted."""
    from edgemamba.runtime.sinks import dicom_objects

    good = dicom_objects.make_report

    def fussy(source: pydicom.Dataset, *given: Any, number: int, **options: Any) -> pydicom.Dataset:
        if number == 2:
            raise ValueError("Secret^Patient")
        return good(source, *given, number=number, **options)

    monkeypatch.setattr(dicom_objects, "make_report", fussy)
    make_series(tmp_path / "series", 3)
    with open_source(tmp_path / "series") as source:
        sink = DicomSink(tmp_path / "out")
        write_all(sink, source)
    assert (len(objects(tmp_path / "out", "sr")), len(objects(tmp_path / "out", "sc")), sink.skipped) == (2, 3, 1)
    assert "no object can be made of it (ValueError)" in caplog.text
    assert "Secret" not in caplog.text
