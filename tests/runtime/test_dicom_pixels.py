"""DICOM to pixels, against pydicom's own pipeline on the files that its wheel carries, and what cannot be read."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runtime.bundled_dicom import dicom_folder
from runtime.made_dicom import RAMP, grey, save

from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space, pixel_array  # noqa: E402
from pydicom.uid import RLELossless  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_warnings")
FOLDER = dicom_folder()

# Files made bad on purpose, or compressed with a syntax that no permissively licensed wheel decodes.
UNREADABLE = {
    "JPEG-lossy.dcm": "cannot be decoded",
    "JPEG2000-embedded-sequence-delimiter.dcm": "its compressed picture is 3722445056 x 1024",
    "JPGExtended.dcm": "pylibjpeg-libjpeg",
    "MR_truncated.dcm": "cut short: 8130 bytes of 8192",
    "SC_rgb_jpeg.dcm": "do not start with an item",
    "badVR.dcm": "Number of Frames is not a positive number",
    "UN_sequence.dcm": "no pixel data",
    "meta_missing_tsyntax.dcm": "Rows is missing",
    "nested_priv_SQ.dcm": "Rows is missing",
    "rtplan.dcm": "RT Plan Storage",
    "rtplan_truncated.dcm": "no pixel data",
    "reportsi.dcm": "Basic Text SR Storage",
    "waveform_ecg.dcm": "no pixel data",
    "test1.json": "not a DICOM file",
    "README.txt": "not a DICOM file",
}


def bundled() -> list[str]:
    """pydicom's own files that hold an image in a syntax for which a decoder is installed."""
    names = []
    for path in sorted(FOLDER.rglob("*")):
        if (
            not path.is_file()
            or path.name in UNREADABLE
            or path.suffix in (".py", ".pyc", ".json", ".txt", ".gz", ".icc")
        ):
            continue
        try:
            dataset = pydicom.dcmread(path, force=True)
        except Exception:
            continue
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if "PixelData" in dataset and syntax and pydicom.pixels.get_decoder(syntax).is_available:
            names.append(str(path.relative_to(FOLDER)))
    return names


def expected(dataset: Dataset) -> NDArray[Any]:
    """One frame by pydicom's functions alone, each value of which is the standard's formula."""
    pixels = pixel_array(dataset, raw=True)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[0]
    if dataset.SamplesPerPixel == 3:
        photometric = dataset.PhotometricInterpretation
        if photometric.startswith("YBR_FULL"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return np.rint(pixels / (2.0**dataset.BitsStored - 1) * 255)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        rgb = apply_color_lut(pixels, dataset)
        return rgb >> 8 if rgb.dtype == np.uint16 else rgb
    values = apply_modality_lut(pixels, dataset)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        shown = apply_voi_lut(values, dataset)
        ends = np.array([0, 2**dataset.BitsStored - 1]) - (2 ** (dataset.BitsStored - 1)) * dataset.PixelRepresentation
        low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    elif dataset.BitsStored <= 8:
        shown, low, high = values, 0, 2**dataset.BitsStored - 1
    else:
        shown = np.where(values == dataset.get("PixelPaddingValue", np.inf), np.nan, values)
        low, high = np.nanmin(shown), np.nanmax(shown)
        shown = np.nan_to_num(shown, nan=low)
    unit = (shown - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    return np.rint(unit * 65535)[..., None]


@pytest.mark.parametrize("name", bundled())
def test_bundled_files_equal_pydicoms_pipeline(name: str) -> None:
    dataset = pydicom.dcmread(FOLDER / name, force=True)
    with DicomImage(FOLDER / name) as image:
        pixels = image.frame(0)
        facts = image.metadata(0)
    grey = dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
    assert pixels.dtype == (np.uint16 if grey else np.uint8)
    assert pixels.shape == (dataset.Rows, dataset.Columns, 1 if grey else 3)
    # One level of rounding; of 65535 for grey.
    assert np.abs(pixels.astype(np.int64) - expected(dataset)).max() <= 1
    json.dumps(facts)


def test_most_bundled_files_were_compared() -> None:
    assert len(bundled()) > 70


def test_deflated_file() -> None:
    """pydicom cannot decode it from a path; its data set can."""
    dataset = pydicom.dcmread(FOLDER / "image_dfl.dcm")
    with DicomImage(FOLDER / "image_dfl.dcm") as image:
        assert (image.frame(0)[..., 0] == dataset.pixel_array.astype(np.uint16) * 257).all()


@pytest.mark.parametrize(("name", "reason"), UNREADABLE.items())
def test_unreadable_files_say_why(name: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught, DicomImage(FOLDER / name) as image:
        image.frame(0)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_unsupported_transfer_syntaxes_name_the_remedy(tmp_path: Path) -> None:
    gdcm = pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.70").is_available
    if not gdcm:
        with pytest.raises(SourceError, match=r"JPEG Lossless.*edgemamba\[dicom-gdcm\]"):
            DicomImage(FOLDER / "SC_rgb_jpeg_gdcm.dcm")
    dataset = grey(np.zeros((4, 4), np.uint16))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    dataset.PixelData = encapsulate([b"not a film"])
    with pytest.raises(SourceError, match=r"MPEG-4.*is not supported"):
        DicomImage(save(dataset, tmp_path))


def test_planar_configuration(tmp_path: Path) -> None:
    """Colour by plane is given back colour by pixel."""
    rgb = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    dataset = grey(rgb[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=1)
    dataset.PixelData = rgb.transpose(2, 0, 1).tobytes()
    with DicomImage(save(dataset, tmp_path)) as image:
        assert (image.frame(0) == rgb).all()


def test_unsupported_photometric_interpretation(tmp_path: Path) -> None:
    dataset = grey(
        np.zeros((6, 4), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="HSV", PlanarConfiguration=0
    )
    dataset.PixelData = bytes(6 * 4 * 3)
    with (
        pytest.raises(SourceError, match=r"\(0028,0004\) Photometric Interpretation HSV is not supported"),
        DicomImage(save(dataset, tmp_path)) as image,
    ):
        image.frame(0)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    dataset = grey(np.zeros((4, 4), np.uint16), RLELossless)
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset.Rows = dataset.Columns = 65535
    with pytest.raises(SourceError, match="one frame would take 8191 MiB"):
        DicomImage(save(dataset, tmp_path))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_never_escape_as_anything_else(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Cut or flip bytes of real files: pixels, or one line that says why not."""
    name = data.draw(st.sampled_from(["MR_small_RLE.dcm", "CT_small.dcm", "SC_rgb_small_odd_jpeg.dcm", "rtdose.dcm"]))
    content = bytearray((FOLDER / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        with DicomImage(path) as image:
            image.frame(0)
    except SourceError as error:
        reason = str(error)
    else:
        reason = ""
    assert "\n" not in reason


def test_nothing_identifies_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "edgemamba"), DicomImage(save(grey(RAMP), tmp_path)) as image:
        image.frame(0)
        text = json.dumps(image.metadata(0)) + caplog.text
    assert "SECRET" not in text.upper()
    assert "498.1" not in text


def test_files_without_prefix_or_transfer_syntax(tmp_path: Path) -> None:
    """Files of old archives: the bare data set."""
    source = pydicom.dcmread(FOLDER / "MR_small_implicit.dcm")
    bare = tmp_path / "bare.dcm"
    with bare.open("wb") as file:
        pydicom.filewriter.write_dataset(_writer(file), source)
    with DicomImage(bare) as image, DicomImage(FOLDER / "MR_small_implicit.dcm") as whole:
        assert (image.frame(0) == whole.frame(0)).all()


def _writer(file: Any) -> Any:
    writer = pydicom.filebase.DicomFileLike(file)
    writer.is_implicit_VR, writer.is_little_endian = True, True
    return writer


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"DICM", b"\0" * 128 + b"DICM"])
def test_what_is_not_dicom(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"image\.dcm: "):
        DicomImage(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.dcm", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            DicomImage(path)


def test_copies_are_closed(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "CT_small.dcm", tmp_path))
    with DicomImage(path) as image:
        handle = image._file
    assert handle.closed
