"""DICOM objects of results: valid, correctly referring, without patients unless asked; sent to dcmtk and Orthanc."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highdicom")
import highdicom as hd
import pydicom
from pydicom.uid import generate_uid
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import make_series, run
from runtime.made_dicom import of_another_kind

from edgemamba.runtime.errors import MissingExtraError, SinkError, SourceError
from edgemamba.runtime.frames import DicomFrame, Frame
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.predictions import TopClass
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.dicom_objects import DicomSink, open_dicom_sink
from edgemamba.runtime.sinks.dicom_report import class_code
from edgemamba.runtime.sources import open_source
from edgemamba.runtime.sources.base import Source

TOP = (TopClass(1, "Größe: klein", 0.75), TopClass(0, "other", 0.25))
# Grey and colour, one frame and many, two modalities, compressed with and without loss, inverted.
SOURCES = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "examples_ybr_color.dcm",
    "JPEG2000.dcm",
    "SC_rgb_small_odd.dcm",
    "examples_overlay.dcm",
    "SC_rgb_rle_2frame.dcm",  # two frames in a class that has one
    "SC_jpeg_no_color_transform.dcm",  # without Modality
)
SECRETS = {
    "PatientName": "Sécret^Patïent",
    "PatientID": "SECRET-ID-4711",
    "PatientBirthDate": "19610203",
    "PatientSex": "F",
    "StudyDate": "20210304",
    "StudyTime": "112233",
    "StudyID": "ST-SECRET",
    "AccessionNumber": "ACC-SECRET",
    "ReferringPhysicianName": "Doctor^Secret",
}
OTHERS = {"InstitutionName": "SECRET HOSPITAL", "OperatorsName": "Oper^Secret", "StationName": "SECRET-7"}


def feed(sink: Sink, frames: Iterable[Frame], *, source: Source | None = None) -> list[Result]:
    """All frames of a source, or some of them, into a sink that stays open."""
    results = [Result(frame, TOP, np.zeros(2, np.float32), 0.01) for frame in frames]
    sink.open(frames if source is None else source)  # type: ignore[arg-type]
    for result in results:
        sink.write(result)
    return results


def write_all(sink: Sink, frames: Iterable[Frame], *, source: Source | None = None) -> list[Result]:
    """All frames of a source, or some of them, through a sink."""
    with sink:
        return feed(sink, frames, source=source)


def given_up(sink: DicomSink) -> str:
    """End the sending without patience; what the sink says of it."""
    assert sink._outbox is not None
    sink._outbox.close(patience=0.1)
    return sink.describe()


def patient_file(path: Path, name: str = "CT_small.dcm") -> pydicom.Dataset:
    """A file full of what may not leave."""
    dataset = pydicom.dcmread(dicom_file(name))
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    for keyword, value in {**SECRETS, **OTHERS}.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return dataset


def objects(folder: Path, kind: str) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob(f"{kind}-*.dcm"))]


# -------------------------------------------------------------------------------------------------------------- what they say


def test_capture(tmp_path: Path) -> None:
    with open_source(dicom_file("examples_ybr_color.dcm")) as source:
        results = write_all(DicomSink(tmp_path, kinds=("sc",)), source)
    captures = objects(tmp_path, "sc")
    original = pydicom.dcmread(dicom_file("examples_ybr_color.dcm"), stop_before_pixels=True)
    assert len(captures) == len(results) == 30
    assert len({item.SeriesInstanceUID for item in captures}) == 1
    for index, (capture, result) in enumerate(zip(captures, results, strict=True)):
        assert (capture.pixel_array == annotate(result.frame.pixels, result.top)).all()
        (reference,) = capture.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == original.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == original.SOPClassUID
        assert reference.ReferencedFrameNumber == index + 1
        assert capture.StudyInstanceUID == original.StudyInstanceUID
        assert capture.SeriesInstanceUID != original.SeriesInstanceUID
        assert capture.InstanceNumber == index + 1


def test_report(tmp_path: Path) -> None:
    """Read back by highdicom as a Measurement Report."""
    with open_source(dicom_file("examples_ybr_color.dcm")) as source:
        write_all(DicomSink(tmp_path, kinds=("sr",), classes=2), source)
    (path,) = tmp_path.iterdir()
    report = hd.sr.srread(path)
    original = pydicom.dcmread(dicom_file("examples_ybr_color.dcm"), stop_before_pixels=True)
    assert isinstance(report, hd.sr.ComprehensiveSR)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 60
    assert len({group.tracking_uid for group in groups}) == 60
    for number, group in enumerate(groups):
        expected = TOP[number % 2]
        assert group.finding_type.meaning == expected.name
        assert group.finding_type == class_code(hd.sr, expected.name)
        (certainty,) = group.get_measurements()
        assert (certainty.name.value, certainty.name.scheme_designator) == ("111013", "DCM")
        assert (certainty.value, certainty.unit.value) == (100 * expected.probability, "%")
        (reference,) = group.source_images
        assert reference.referenced_sop_instance_uid == original.SOPInstanceUID
        assert reference.referenced_frame_numbers == [number // 2 + 1]
    assert [evidence[2] for evidence in report.get_evidence()] == [original.SOPInstanceUID]
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )


def test_one_report_an_instance_and_one_series_a_series(tmp_path: Path) -> None:
    make_series(tmp_path / "a", 3)
    make_series(tmp_path / "b", 2, number=2)
    with open_source(tmp_path) as source:
        results = write_all(DicomSink(tmp_path / "out"), source)
    assert len(results) == 5
    for kind in ("sr", "sc"):
        written = objects(tmp_path / "out", kind)
        assert [item.InstanceNumber for item in written] == [1, 2, 3, 1, 2]
        assert len({item.SeriesInstanceUID for item in written}) == 2
        sources = {pydicom.dcmread(path).StudyInstanceUID for path in tmp_path.glob("[ab]/*.dcm")}
        assert {item.StudyInstanceUID for item in written} == sources


def test_report_of_a_cine_that_lost_its_last_frames(tmp_path: Path) -> None:
    with open_source(dicom_file("examples_ybr_color.dcm")) as source:
        sink = DicomSink(tmp_path, kinds=("sr",))
        feed(sink, list(source)[:7], source=source)
        assert not list(tmp_path.iterdir())
        sink.close()
        sink.close()
    assert len(hd.sr.srread(next(tmp_path.iterdir())).content.get_image_measurement_groups()) == 7


@pytest.mark.parametrize("include_phi", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_valid_by_dciodvfy(name: str, include_phi: bool, tmp_path: Path) -> None:
    """David Clunie's validator finds no error; it knows no private coding scheme, which is a warning."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    patient_file(tmp_path / "source.dcm", name)
    with open_source(tmp_path / "source.dcm") as source:
        write_all(DicomSink(tmp_path / "out", include_phi=include_phi), source)
    written = sorted((tmp_path / "out").iterdir())
    assert {path.name[:2] for path in written} == {"sr", "sc"}
    for path in (written[0], written[-1]):
        said = run("dciodvfy", "-new", path)
        errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
        assert not errors, errors
        assert said.returncode == 0


@pytest.mark.slow
def test_every_bundled_file(tmp_path: Path) -> None:
    """Of each picture that pydicom brings and can be decoded here: two frames, both kinds; all valid by dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    orphans, valid = set(), 0
    for number, path in enumerate(sorted(dicom_file("CT_small.dcm").parent.glob("*.dcm"))):
        try:
            with open_source(path) as source:
                sink = DicomSink(tmp_path / str(number))
                write_all(sink, list(itertools.islice(source, 2)), source=source)
        except SourceError:
            continue  # no picture, or none that can be decoded here
        if sink.skipped:
            orphans.add(path.name)
        for written in (tmp_path / str(number)).iterdir():
            said = run("dciodvfy", "-new", written).stderr
            assert "Error -" not in said, f"{path.name}: {said}"
            valid += 1
    assert valid > 100
    for name in orphans:  # only what lacks a UID cannot be referred to
        assert "StudyInstanceUID" not in pydicom.dcmread(dicom_file(name))


# --------------------------------------------------------------------------------------------------------------- what is not


def test_sources_that_are_not_dicom(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    with open_source(tmp_path / "a.png") as source, pytest.raises(SinkError, match=r"a\.png holds no DICOM instance"):
        write_all(DicomSink(tmp_path / "out"), source)
    shutil.copy(dicom_file("CT_small.dcm"), tmp_path / "b.dcm")
    with open_source(tmp_path) as source:
        sink = DicomSink(tmp_path / "out")
        write_all(sink, source)
    assert (len(objects(tmp_path / "out", "sr")), sink.skipped) == (1, 1)


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_series(tmp_path / folder, 1)
    with open_source(str(tmp_path / "*" / "001.dcm")) as source:  # a glob names frames by their files alone
        write_all(DicomSink(tmp_path / "out"), source)
    named = [item.SourceImageSequence[0].ReferencedSOPInstanceUID for item in objects(tmp_path / "out", "sc")]
    assert named == [pydicom.dcmread(path).SOPInstanceUID for path in sorted(tmp_path.glob("[ab]/*.dcm"))]


def test_frames_of_files_carry_their_header_without_what_is_long(tmp_path: Path) -> None:
    dataset = patient_file(tmp_path / "a.dcm")
    dataset.add_new(0x00091001, "OB", bytes(70_000))
    dataset.save_as(tmp_path / "a.dcm")
    with open_source(tmp_path / "a.dcm") as source:
        (frame,) = source
    assert isinstance(frame, DicomFrame)
    assert frame.header is not None
    assert frame.header.PatientName == SECRETS["PatientName"]  # in the file's own character set
    assert 0x00091001 not in frame.header
    assert "PixelData" not in frame.header
    assert "SECRET" not in repr(frame)
    assert "cret" not in repr(frame)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("dicom://", "name a folder"),
        ("dicom:///tmp/x?objects=seg", "objects=seg: give sr or sc"),
        ("dicom:///tmp/x?queue=3", "unknown option queue; known is objects"),
        ("dimse://127.0.0.1:104", "is not an AE title"),
        (
            "dimse://PACS@127.0.0.1:104?allow=x",
            "unknown option allow; known are ca, calling, cert, key, max_mb, objects, queue, tls",
        ),
        ("dimse://PACS@127.0.0.1:104?calling=way-too-long-a-title", "is not an AE title"),
        ("dicomweb://host/base?ca=/none", "ca=/none is no file"),
        ("ftp://host", "ftp:// is no DICOM sink"),
    ],
)
def test_bad_uris(uri: str, message: str) -> None:
    with pytest.raises(SinkError, match=message):
        open_dicom_sink(uri)


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match="highdicom is needed for writing DICOM objects and is not installed"):
        open_dicom_sink(f"dicom://{tmp_path}")


@pytest.mark.parametrize("tag", [b"\x20\x00\x0d\x00UI", b"\x08\x00\x18\x00UI"])
def test_damaged_uids(tag: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of which pydicom makes numbers, or nothing: the picture is one without objects, not the end of the stream."""
    paths = make_series(tmp_path / "in", 2)
    of_another_kind(paths[0], tag)
    value = str(pydicom.dcmread(paths[1], stop_before_pixels=True).StudyInstanceUID)
    with open_source(tmp_path / "in") as source:
        sink = DicomSink(tmp_path / "out")
        assert len(write_all(sink, source)) == 2
    assert (len(objects(tmp_path / "out", "sr")), sink.skipped) == (1, 1)
    assert value not in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with open_source(dicom_file("CT_small.dcm")) as source, pytest.raises(SinkError, match="cannot be made a folder"):
        write_all(DicomSink(tmp_path / "file"), source)
