"""DICOM folders and DICOMDIRs: slice order, several series, and what is chosen of them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.bundled_dicom import dicom_file

from edgemamba.runtime import open_source
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.preprocessing import Preprocessing

pydicom = pytest.importorskip("pydicom")

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
OBLIQUE = (0.8, 0.6, 0, 0, 0, -1)  # normal (-0.6, 0.8, 0)
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.7", "1.2.826.0.1.3680043.8.498.8"


def write_slice(
    path: Path,
    value: int,
    position: Sequence[float] | None,
    cosines: Sequence[float] = AXIAL,
    series: str = SERIES,
    **elements: Any,
) -> Path:
    """A picture of one value, by which it is known again."""
    dataset = pydicom.dcmread(dicom_file("MR_small.dcm"))
    for keyword in ("ImagePositionPatient", "SliceLocation", "InstanceNumber", "SeriesNumber"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, series
    dataset.ImageOrientationPatient = list(cosines)
    if position is not None:
        dataset.ImagePositionPatient = list(position)
    for keyword, element in elements.items():
        setattr(dataset, keyword, element)
    dataset.PixelData = np.full((dataset.Rows, dataset.Columns), value, np.int16).tobytes()
    path.parent.mkdir(exist_ok=True, parents=True)
    dataset.save_as(path)
    return path


def values(source: Any) -> list[int]:
    """The pictures' values, through the full 16-bit scale."""
    with open_source(source, voi="full") as opened:
        return [round(int(frame.pixels[0, 0, 0]) * 65535 / 65535) - 32768 for frame in opened]


@pytest.mark.parametrize(("cosines", "axis"), [(AXIAL, 2), (SAGITTAL, 0)])
def test_slices_come_by_position_not_by_name(cosines: Sequence[float], axis: int, tmp_path: Path) -> None:
    """Nor by Instance Number, nor by the coordinate that happens to be last."""
    names = list(range(12))
    random.Random(0).shuffle(names)
    sign = 1 if cosines == AXIAL else -1  # the normal of SAGITTAL points to -x
    for place in range(12):
        position = [5.0, -3.0, 40.0]
        position[axis] = sign * (place * 2.5 - 10)
        write_slice(tmp_path / f"IM{names[place]}", place, position, cosines, InstanceNumber=names[place])
    assert values(f"dicom://{tmp_path}") == list(range(12))
    assert values(tmp_path) == list(range(12))
    with open_source(f"dicom://{tmp_path}") as source:
        steps = np.diff([frame.metadata["slice_position"] for frame in source])
    assert np.allclose(steps, 2.5)


def test_oblique_slices(tmp_path: Path) -> None:
    """No coordinate alone is in order: the positions also wander inside the plane."""
    rng = np.random.default_rng(0)
    row, column = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    normal = np.cross(row, column)
    for place in range(8):
        wander = rng.uniform(-50, 50) * row + rng.uniform(-50, 50) * column
        write_slice(tmp_path / f"{rng.integers(1 << 30)}.dcm", place, normal * place * 3 + wander, OBLIQUE)
    assert values(f"dicom://{tmp_path}") == list(range(8))


def test_several_series_are_kept_apart(tmp_path: Path) -> None:
    """By Series Number, whatever the files are called; a series without number last, of one without positions by Instance Number."""
    for i in range(3):
        write_slice(tmp_path / f"a{i}", 200 + i, (0, 0, i), series="1.2.3.2", SeriesNumber=2)
        write_slice(tmp_path / f"b{2 - i}", 100 + i, (0, 0, i), series="1.2.3.1", SeriesNumber=1)
        write_slice(tmp_path / f"c{i}", 300 + i, None, series="1.2.3.0", InstanceNumber=i + 1)
        write_slice(tmp_path / f"0{i}", 400 + i, (0, 0, -i), series="1.2.3.9", SeriesNumber=10, Modality="CT")
    expected = [100, 101, 102, 200, 201, 202, 402, 401, 400, 300, 301, 302]
    assert values(f"dicom://{tmp_path}") == expected
    assert values(str(tmp_path / "*")) == expected
    assert values(f"dicom://{tmp_path}?series=2") == [200, 201, 202]
    assert values(f"dicom://{tmp_path}?modality=ct") == [402, 401, 400]
    with pytest.raises(SourceError, match="none of its 12 DICOM files has modality=US and series=2"):
        open_source(f"dicom://{tmp_path}?modality=US&series=2")


def test_volumes_in_time_come_one_after_the_other(tmp_path: Path) -> None:
    for phase in range(3):
        for place in range(4):
            write_slice(
                tmp_path / f"{place}_{phase}",
                10 * phase + place,
                (0, 0, place * 5 + 0.002 * phase),  # rounding of the scanner
                TemporalPositionIdentifier=phase + 1,
                InstanceNumber=place * 3 + phase,
            )
    assert values(f"dicom://{tmp_path}") == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]


def test_a_localizer_of_three_orientations(tmp_path: Path) -> None:
    for i in range(2):
        write_slice(tmp_path / f"b{i}", 10 + i, (0, 0, -i), AXIAL, InstanceNumber=3 + i)
        write_slice(tmp_path / f"a{i}", i, (-i, 0, 0), SAGITTAL, InstanceNumber=1 + i)
    assert values(f"dicom://{tmp_path}") == [0, 1, 11, 10]


def test_a_rotating_view_comes_by_instance_number(tmp_path: Path) -> None:
    for i in range(70):
        angle = np.pi * i / 70
        cosines = (np.cos(angle), np.sin(angle), 0, 0, 0, -1)
        write_slice(tmp_path / f"{(i * 31) % 70}", i, (0, 0, -i), cosines, InstanceNumber=i + 1)
    assert values(f"dicom://{tmp_path}") == list(range(70))


def test_a_study_of_mixed_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images of any kind are read; a report and a damaged file are skipped by name; other files are left alone by dicom://."""
    for i in range(3):
        write_slice(tmp_path / f"{2 - i}.dcm", i, (0, 0, i), SeriesNumber=1)
    shutil.copy(dicom_file("reportsi.dcm"), tmp_path / "report.dcm")
    shutil.copy(dicom_file("SC_rgb_small_odd_jpeg.dcm"), tmp_path / "capture.dcm")
    (tmp_path / "damaged.dcm").write_bytes((tmp_path / "0.dcm").read_bytes()[:700])
    (tmp_path / "key.jpg").write_bytes(b"no picture")
    with open_source(f"dicom://{tmp_path}") as source:
        names = [frame.source for frame in source]
    assert names == ["2.dcm", "1.dcm", "0.dcm", "capture.dcm"]
    assert source.skipped.count == 2
    assert "report.dcm" in caplog.text
    assert "damaged.dcm" in caplog.text


def test_multi_frame_files_keep_their_frames(tmp_path: Path) -> None:
    shutil.copy(dicom_file("rtdose_rle.dcm"), tmp_path / "x.dcm")
    write_slice(tmp_path / "a.dcm", 1, (0, 0, 0))
    with open_source(f"dicom://{tmp_path}") as source:
        frames = list(source)
    assert [frame.source for frame in frames] == ["a.dcm", *["x.dcm"] * 15]
    assert [frame.metadata["frame_number"] for frame in frames[1:]] == list(range(1, 16))


# ----------------------------------------------------------------------------------------------------------------- DICOMDIR


def test_dicomdir() -> None:
    """pydicom's: three patients' CR, CT and MR images, of which each instance is found and named by its path."""
    path = dicom_file("DICOMDIR")
    for argument in (path, f"dicom://{path}"):
        with open_source(argument) as source:
            frames = list(source)
        assert len(frames) == 31
        assert source.skipped.count == 0
        assert {frame.metadata["modality"] for frame in frames} == {"CR", "CT", "MR"}
        assert len({frame.source for frame in frames}) == 31
    with open_source(f"dicom://{path}?modality=CR") as source:
        assert [frame.source for frame in source] == ["77654033/CR1/6154", "77654033/CR2/6247", "77654033/CR3/6278"]


@pytest.mark.filterwarnings("ignore:.*for VR CS")  # pydicom's, of the names that are written here on purpose
def test_dicomdir_with_files_missing_in_another_case_and_outside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = dicom_file("DICOMDIR")
    (tmp_path / "disk" / "77654033" / "cr1").mkdir(parents=True)
    shutil.copy(original.parent / "77654033" / "CR1" / "6154", tmp_path / "disk" / "77654033" / "cr1" / "6154;1")
    shutil.copy(original.parent / "77654033" / "CR2" / "6247", tmp_path / "secret")
    dataset = pydicom.dcmread(original)
    images = [record for record in dataset.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE"]
    images[1].ReferencedFileID = ["..", "secret"]
    images[2].ReferencedFileID = str(tmp_path / "secret")[:60]
    dataset.save_as(tmp_path / "disk" / "DICOMDIR")
    with open_source(tmp_path / "disk" / "DICOMDIR") as source:
        assert [frame.source for frame in source] == ["77654033/cr1/6154;1"]
    assert source.skipped.count == 30
    assert "names 30 files that are not there; the first: ../secret" in caplog.text


def test_dicomdirs_that_name_nothing(tmp_path: Path) -> None:
    path = Path(shutil.copy(dicom_file("DICOMDIR"), tmp_path))
    with pytest.raises(SourceError, match="DICOMDIR names no image that is there"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(SourceError, match="DICOMDIR"):
        list(open_source(path))


# ----------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_grey_keeps_its_bits_to_the_models_input(dtype: Any, tmp_path: Path) -> None:
    """4096 stored values are 4096 values of the input; of an input of 8 bits 256."""
    dataset = pydicom.dcmread(write_slice(tmp_path / "a.dcm", 0, (0, 0, 0)))
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = np.arange(4096, dtype=np.uint16).tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    (frame,) = open_source(tmp_path / "a.dcm", voi="full")
    fitted = Preprocessing(size=(64, 64), resize="squash", dtype=dtype).fit(frame.pixels)
    assert fitted.dtype == dtype
    assert len(np.unique(fitted)) == (256 if dtype == "uint8" else 4096)
    assert np.array_equal(np.argsort(fitted[..., 0].ravel(), kind="stable"), np.arange(4096))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """Pixels twice as high as wide: stored as they are, and twice the rows on request; 16 bits are kept."""
    path = write_slice(tmp_path / "a.dcm", 3, (0, 0, 0), PixelSpacing=[1.0, 0.5], SliceThickness=4)
    (plain,) = open_source(path)
    (square,) = open_source(f"dicom://{path}?square=1", voi="full")
    assert plain.pixels.shape == (64, 64, 1)
    assert plain.metadata["pixel_aspect_ratio"] == 2
    assert plain.metadata["pixel_spacing"] == [1.0, 0.5]
    assert plain.metadata["slice_thickness"] == 4
    assert square.pixels.shape == (128, 64, 1)
    assert square.pixels.dtype == np.uint16
    wide = write_slice(tmp_path / "b.dcm", 3, (0, 0, 0), PixelAspectRatio=["1", "3"])
    assert next(iter(open_source(f"dicom://{wide}?square=1"))).pixels.shape == (64, 192, 1)
    absurd = write_slice(tmp_path / "c.dcm", 3, (0, 0, 0), PixelAspectRatio=["1", "2000000000"], PixelSpacing=[1, 1])
    assert next(iter(open_source(f"dicom://{absurd}?square=1"))).pixels.shape == (64, 64, 1)
