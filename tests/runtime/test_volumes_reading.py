"""DICOM series, enhanced files and NIfTI as volumes; and those that are none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.volume_files import AXIAL, OBLIQUE, affine_of, shapes, write_enhanced, write_nifti, write_series

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.volumes.reading import read_volumes
from edgemamba.runtime.volumes.series import read_series

pydicom = pytest.importorskip("pydicom")
nib = pytest.importorskip("nibabel")
ONE = ("image",)


@pytest.mark.parametrize("cosines", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_series_in_the_order_of_space_in_hounsfield_units(cosines: tuple[float, ...], tmp_path: Path) -> None:
    values = shapes()
    write_series(tmp_path, values, cosines=cosines)
    study = read_volumes([str(tmp_path)], ONE)
    assert (study.channels[0] == values).all()
    np.testing.assert_allclose(study.grid.affine, affine_of(cosines), atol=1e-4)
    assert [plane.path.name for plane in study.planes] == [f"{i:03d}.dcm" for i in range(len(values), 0, -1)]


def test_an_enhanced_file_equals_the_series(tmp_path: Path) -> None:
    values = shapes()
    study = read_volumes([str(write_enhanced(tmp_path / "enhanced.dcm", values))], ONE)
    assert (study.channels[0] == values).all()
    np.testing.assert_allclose(study.grid.affine, affine_of(), atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_lies_where_the_series_lies(suffix: str, tmp_path: Path) -> None:
    """Axes other, voxels the same: by their places in the patient."""
    values = shapes()
    study = read_volumes([str(write_nifti(tmp_path / f"v{suffix}", values))], ONE)
    assert (study.channels[0].transpose(2, 1, 0) == values).all()
    np.testing.assert_allclose(study.grid.affine[:, [2, 1, 0, 3]], affine_of(), atol=1e-4)


def test_modalities_by_order_by_name_and_along_the_fourth_axis(tmp_path: Path) -> None:
    values = shapes()
    first, second = write_nifti(tmp_path / "1.nii.gz", values), write_nifti(tmp_path / "2.nii.gz", values + 7)
    both = write_nifti(tmp_path / "4d.nii", np.stack([values, values + 7], -1))
    for sources in ([str(first), str(second)], [f"t2={second}", f"t1={first}"], [str(both)]):
        study = read_volumes(sources, ("t1", "t2"))
        assert len(study.channels) == 2
        assert (study.channels[1] == study.channels[0] + 7).all()
        assert (study.channels[0].transpose(2, 1, 0) == values).all()


def test_a_series_and_nifti_of_one_scan_go_together(tmp_path: Path) -> None:
    """By the places of their voxels; the converter turned the axes, and let rows run the other way."""
    values = shapes()
    write_series(tmp_path / "ct", values)
    other = affine_of()
    other[:3, 3] += other[:3, 1] * (values.shape[1] - 1)
    other[:3, 1] *= -1
    nifti = write_nifti(tmp_path / "ct.nii.gz", values[:, ::-1] + 7, other)
    study = read_volumes([str(tmp_path / "ct"), str(nifti)], ("t1", "t2"))
    assert (study.channels[1] == study.channels[0] + 7).all()


def test_modalities_that_do_not_fit(tmp_path: Path) -> None:
    values = shapes()
    write_series(tmp_path / "a", values)
    write_series(tmp_path / "b", values, series="1.2.3", frame="1.2.826.0.1.3680043.8.498.60")
    shifted = affine_of()
    shifted[0, 3] += 0.5
    other = write_nifti(tmp_path / "shifted.nii", values, shifted)
    fitting = write_nifti(tmp_path / "fitting.nii", values)
    cases = [
        ([tmp_path / "a", tmp_path / "b"], "frame of reference"),
        ([fitting, other], "shifted.nii: its voxels .* do not lie where"),
        ([fitting], "1 volume is given; the model takes 2: .* t1, t2"),
        ([fitting, fitting, fitting], "3 volumes are given"),
        ([f"t1={fitting}"], "every modality once"),
        ([write_nifti(tmp_path / "3.nii", np.stack([values] * 3, -1))], "3 volumes; the model takes 2"),
    ]
    for sources, words in cases:
        with pytest.raises(SourceError, match=words):
            read_volumes([str(source) for source in sources], ("t1", "t2"))


def edit(path: Path, **elements: Any) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


BAD_SERIES = {
    "one slice": (lambda paths: [path.unlink() for path in paths[1:]], "one slice, no volume"),
    "a slice is missing": (lambda paths: paths[4].unlink(), "a slice is missing: 6.00 mm .* 3.00 mm elsewhere"),
    "distances vary": (lambda paths: edit(paths[0], ImagePositionPatient=[-20, -30, 4.2]), "distances vary"),
    "twice": (
        lambda paths: edit(paths[3], ImagePositionPatient=pydicom.dcmread(paths[4]).ImagePositionPatient),
        "same place",
    ),
    "mixed spacing": (lambda paths: edit(paths[2], PixelSpacing=[0.9, 1.1]), "several pixel spacings"),
    "two orientations": (lambda paths: edit(paths[5], ImageOrientationPatient=list(OBLIQUE)), "several orientations"),
    "two series": (lambda paths: edit(paths[1], SeriesInstanceUID="1.2.3", SeriesNumber=9), "several series"),
    "two frames": (lambda paths: edit(paths[1], FrameOfReferenceUID="1.2.3"), "several frames of reference"),
    "no position": (lambda paths: edit(paths[1], ImagePositionPatient=None), r"\(0020,0032\)"),
    "no orientation": (lambda paths: edit(paths[1], ImageOrientationPatient=None), r"\(0020,0037\)"),
    "no spacing": (lambda paths: edit(paths[1], PixelSpacing=None), r"\(0028,0030\)"),
    "cut short": (lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-100]), "cut short"),
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_series_that_are_no_volume(kind: str, tmp_path: Path) -> None:
    spoil, words = BAD_SERIES[kind]
    paths = write_series(tmp_path, shapes())
    spoil(paths)
    with pytest.raises(SourceError, match=words) as caught:
        read_series(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "Secret" not in str(caught.value)


def test_a_tilted_gantry(tmp_path: Path) -> None:
    paths = write_series(tmp_path, shapes())
    for index, path in enumerate(paths):
        edit(path, ImagePositionPatient=[-20, -30 + 0.4 * index, 5 + 3 * index])
    with pytest.raises(SourceError, match="tilted gantry"):
        read_series(str(tmp_path))


def test_one_of_several_series_is_chosen_by_number(tmp_path: Path) -> None:
    values = shapes()
    write_series(tmp_path / "a", values)
    write_series(tmp_path / "b", values + 1, series="1.2.3", SeriesNumber=9)
    study = read_volumes([f"dicom://{tmp_path}?series=9"], ONE)
    assert (study.channels[0] == values + 1).all()


def test_what_is_no_volume_at_all(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    cases = {
        "0": "v4l2",
        "rtsp://camera/live": "rtsp",
        str(tmp_path / "absent.nii"): "does not exist",
        str(tmp_path / "note.txt"): "neither DICOM nor NIfTI",
        str(tmp_path / "empty"): "holds no DICOM file",
        str(pydicom.data.get_testdata_file("CT_small.dcm", download=False)): "one slice",
        str(pydicom.data.get_testdata_file("examples_ybr_color.dcm", download=False)): "no slice of a volume",
    }
    for source, words in cases.items():
        with pytest.raises(SourceError, match=words):
            read_volumes([source], ONE)


def header(path: Path, dims: tuple[int, ...], **fields: Any) -> Path:
    """A file that is a header and nothing more."""
    made = nib.Nifti1Header()
    made["magic"] = b"n+1"
    made["dim"] = [len(dims), *dims, *[1] * (7 - len(dims))]
    made["vox_offset"] = 352
    for name, value in {"sform_code": 1, "datatype": 4, "bitpix": 16, **fields}.items():
        made[name] = value
    made["srow_x"], made["srow_y"], made["srow_z"] = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
    data = made.binaryblock + b"\0" * 4
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_hostile_nifti(suffix: str, tmp_path: Path) -> None:
    """A header of 352 bytes asks for terabytes, or points far away: refused before anything is allocated."""
    cases = {
        "huge": ((32767, 32767, 32767), {}, "limit"),
        "absent": ((500, 500, 500), {}, "cut short|damaged|cannot be read"),
        "far": ((8, 8, 8), {"vox_offset": 2e9}, "begin at byte"),
        "before": ((8, 8, 8), {"vox_offset": -8}, "begin at byte|damaged"),
        "flat": ((8, 8, 1), {}, "one slice"),
        "plane": ((8, 8), {}, "three axes"),
        "six": ((8, 8, 8, 1, 3), {}, "three axes"),
        "colour": ((8, 8, 8), {"datatype": 128, "bitpix": 24}, "not grey"),
        "complex": ((8, 8, 8), {"datatype": 32, "bitpix": 64}, "not grey"),
        "unknown": ((8, 8, 8), {"datatype": 77}, "damaged"),
        "many": ((8, 8, 8, 30000), {}, "30000 volumes; the model takes 1|cut short"),
    }
    for name, (dims, fields, words) in cases.items():
        path = header(tmp_path / f"{name}{suffix}", dims, **fields)
        with pytest.raises(SourceError, match=words) as caught:
            read_volumes([str(path)], ONE)
        assert "\n" not in str(caught.value)
    for content in (b"", b"\x1f\x8b", b"no nifti", struct.pack("<i", 348), bytes(600)):
        path = tmp_path / f"torso{suffix}"
        path.write_bytes(content)
        with pytest.raises(SourceError):
            read_volumes([str(path)], ONE)


def test_nifti_whose_values_are_not_finite(tmp_path: Path) -> None:
    values = shapes().astype(np.float32)
    values[3, 4, 5] = np.nan
    with pytest.raises(SourceError, match="1 of its 4800 voxels are not finite"):
        read_volumes([str(write_nifti(tmp_path / "nan.nii.gz", values))], ONE)


def test_nifti_without_an_orientation_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.Nifti1Image(shapes().transpose(2, 1, 0), None)
    nib.save(image, tmp_path / "lost.nii")
    with caplog.at_level("WARNING"):
        read_volumes([str(tmp_path / "lost.nii")], ONE)
    assert "states no orientation" in caplog.text


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(shapes().transpose(2, 1, 0), np.diag([500.0, 500.0, 900.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "small.nii")
    np.testing.assert_allclose(read_volumes([str(tmp_path / "small.nii")], ONE).grid.steps, (0.5, 0.5, 0.9), atol=1e-6)
