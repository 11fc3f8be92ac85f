"""DICOM to pixels, against pydicom's own pipeline on the files that its wheel carries, and on data sets built here."""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemamba.runtime.dicom_grayscale import GrayscaleTransform, Voi, Window
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space, pixel_array  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

FOLDER = Path(get_testdata_file("CT_small.dcm", download=False)).parent

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


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


# ----------------------------------------------------------------------------------------------------- data sets built here


def grey(stored: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A grey image of these stored values, (H, W) or (frames, H, W)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.PatientName = "Secret^Patient"
    dataset.PatientID = "SECRET-ID"
    dataset.Modality = "OT"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 and order == "<" else "OW"
    return dataset


def save(dataset: Dataset, folder: Path, name: str = "image.dcm") -> Path:
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(dataset: Dataset, folder: Path, voi: Voi = "auto", index: int = 0) -> NDArray[Any]:
    with DicomImage(save(dataset, folder), voi) as image:
        return image.frame(index)[..., 0].astype(np.float64)


RAMP = np.arange(-32, 32, dtype=np.int16).reshape(8, 8)


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path) -> None:
    window = {"WindowCenter": 5, "WindowWidth": 21}
    upright = shown(grey(RAMP, **window), tmp_path)
    inverted = shown(grey(RAMP, **window, PhotometricInterpretation="MONOCHROME1"), tmp_path)
    assert upright[0, 0] == 0
    assert inverted[0, 0] == 65535
    assert np.abs(upright + inverted - 65535).max() <= 1
    # Presentation LUT Shape states the same inversion, and must not undo it.
    twice = grey(RAMP, **window, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert (shown(twice, tmp_path) == inverted).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_window_functions(function: str, syntax: str, tmp_path: Path) -> None:
    dataset = grey(
        RAMP, syntax, RescaleSlope="2", RescaleIntercept="-10", WindowCenter=4, WindowWidth=30, VOILUTFunction=function
    )
    x = RAMP * 2.0 - 10
    unit = {
        "LINEAR": np.clip((x - 3.5) / 29 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - 4) / 30 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - 4) / 30)),
    }[function]
    assert np.abs(shown(dataset, tmp_path) - unit * 65535).max() <= 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_users_window_replaces_the_files(function: Any, tmp_path: Path) -> None:
    theirs = grey(RAMP, WindowCenter=100, WindowWidth=3)
    ours = grey(RAMP, WindowCenter=0, WindowWidth=40, VOILUTFunction=function)
    assert (shown(theirs, tmp_path, Window(0, 40, function)) == shown(ours, tmp_path)).all()


def test_narrowest_linear_window_is_a_step(tmp_path: Path) -> None:
    pixels = shown(grey(RAMP, WindowCenter=3, WindowWidth=1), tmp_path)
    assert ((pixels == 65535) == (RAMP > 2)).all()


@pytest.mark.parametrize(("center", "width"), [(0.0, 0.0), (np.nan, 5.0), (0.0, -1.0)])
def test_impossible_windows_are_refused(center: float, width: float) -> None:
    with pytest.raises(ValueError, match="window"):
        Window(center, width)


def test_a_files_impossible_window_falls_back_and_says_so(tmp_path: Path) -> None:
    path = save(grey(RAMP, WindowCenter=3, WindowWidth=0), tmp_path)
    with DicomImage(path) as image:
        assert image.metadata(0)["voi"] == "least to greatest value of the frame"
        assert (image.frame(0).min(), image.frame(0).max()) == (0, 65535)


def lut_item(first: int, table: NDArray[np.uint16], bits: int, as_bytes: bool) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table), first, bits])
    item.add_new("LUTData", "OW" if as_bytes else "US", table.tobytes() if as_bytes else table.tolist())
    return item


@pytest.mark.parametrize("as_bytes", [True, False])
def test_voi_and_modality_luts(as_bytes: bool, tmp_path: Path) -> None:
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
    modality = (np.arange(40, dtype=np.uint16) * 20 + 5)[::-1].copy()
    voi = (np.linspace(0, 1, 300) ** 2 * 1023).astype(np.uint16)
    dataset = grey(stored)
    dataset.ModalityLUTSequence = Sequence([lut_item(10, modality, 16, as_bytes)])
    dataset.VOILUTSequence = Sequence([lut_item(100, voi, 10, as_bytes)])
    expected_values = voi[np.clip(modality[np.clip(stored.astype(int) - 10, 0, 39)].astype(int) - 100, 0, 299)] / 1023
    assert np.abs(shown(dataset, tmp_path) - expected_values * 65535).max() <= 0.5
    # A window beside the LUT is used when asked for; the least and greatest value are those after the modality LUT.
    dataset.WindowCenter, dataset.WindowWidth = 400, 200
    unit = np.clip((modality[np.clip(stored.astype(int) - 10, 0, 39)] - 399.5) / 199 + 0.5, 0, 1)
    assert np.abs(shown(dataset, tmp_path, "window") - unit * 65535).max() <= 0.5
    assert shown(dataset, tmp_path, "minmax")[0, 0] == 65535


def test_signed_lut_start(tmp_path: Path) -> None:
    dataset = grey(RAMP)
    dataset.VOILUTSequence = Sequence([lut_item(-32, np.arange(64, dtype=np.uint16), 8, False)])
    assert np.abs(shown(dataset, tmp_path, "lut") - np.arange(64).reshape(8, 8) / 255 * 65535).max() <= 0.5


@pytest.mark.parametrize(("voi", "named"), [("lut", "VOI LUT Sequence"), ("window", "Window Center")])
def test_asking_for_what_the_file_lacks(voi: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=named):
        DicomImage(save(grey(RAMP), tmp_path), voi)


def test_padding_does_not_stretch_the_range(tmp_path: Path) -> None:
    stored = np.arange(100, 164, dtype=np.int16).reshape(8, 8)
    stored[0, :4] = -2000
    pixels = shown(grey(stored, PixelPaddingValue=-2000), tmp_path)
    assert (pixels[0, :4] == 0).all()
    assert len(np.unique(pixels[1:])) == 56
    assert pixels.max() == 65535


def test_odd_bit_depths(tmp_path: Path) -> None:
    """12 signed bits in 16, with an overlay bit above them: the unused bits are no part of the value."""
    stored = np.arange(-2048, 2048, 64, dtype=np.int16).reshape(8, 8)
    raw = (stored & 0x0FFF).astype(np.int16)
    dataset = grey(raw, BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=4096)
    assert np.abs(shown(dataset, tmp_path) - (stored + 2048) / 4095 * 65535).max() <= 0.5
    assert np.abs(shown(dataset, tmp_path, "full") - (stored + 2048) / 4095 * 65535).max() <= 0.5


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


def test_float_pixel_data(tmp_path: Path) -> None:
    values = np.linspace(-3, 7, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    dataset = grey(np.zeros((8, 8), np.uint32))
    del dataset.PixelData, dataset.BitsStored, dataset.PixelRepresentation, dataset.HighBit
    dataset.FloatPixelData = values.tobytes()
    pixels = shown(dataset, tmp_path)
    assert pixels[0, 0] == 0
    assert pixels[7, 7] == 65535
    assert pixels[0, 1] == 0


def test_enhanced_frames_have_their_own_rescale_and_window(tmp_path: Path) -> None:
    stored = np.stack([RAMP, RAMP, RAMP]).astype(np.int16)
    dataset = grey(stored, WindowCenter=0, WindowWidth=1000)

    def group(**items: dict[str, float]) -> Dataset:
        result = Dataset()
        for keyword, elements in items.items():
            item = Dataset()
            for name, value in elements.items():
                setattr(item, name, value)
            setattr(result, keyword, Sequence([item]))
        return result

    rescale = {"RescaleSlope": 2.0, "RescaleIntercept": 1.0}
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                FrameVOILUTSequence={"WindowCenter": 0.0, "WindowWidth": 65.0}, PixelValueTransformationSequence=rescale
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            group(FrameVOILUTSequence={"WindowCenter": 10.0, "WindowWidth": 21.0}),
            group(PixelValueTransformationSequence={"RescaleSlope": 1.0, "RescaleIntercept": -5.0}),
            Dataset(),
        ]
    )
    x = [RAMP * 2.0 + 1, RAMP - 5.0, RAMP * 2.0 + 1]
    windows = [(9.5, 20), (-0.5, 64), (-0.5, 64)]
    with DicomImage(save(dataset, tmp_path)) as image:
        for index in (2, 0, 1, 0):
            center, width = windows[index]
            unit = np.clip((x[index] - center) / width + 0.5, 0, 1)
            assert np.abs(image.frame(index)[..., 0] - unit * 65535).max() <= 0.5
        assert image.metadata(0)["voi"] == "window 10/21 LINEAR"


@given(
    slope=st.sampled_from([1.0, 0.5, -2.0, 3.7]),
    intercept=st.sampled_from([0.0, -1024.0, 12.5]),
    voi=st.one_of(st.sampled_from(["full", "minmax"]), st.builds(Window, st.floats(-500, 500), st.floats(1, 3000))),
    stored=st.lists(st.integers(-2048, 2047), min_size=4, max_size=4),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
@settings(max_examples=80, deadline=None)
def test_table_and_direct_evaluation_agree(
    slope: float, intercept: float, voi: Voi, stored: list[int], photometric: str
) -> None:
    """Integers go through a table where that is smaller than the frame; floats never do."""
    dataset = grey(
        np.zeros((2, 2), np.int16),
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        PhotometricInterpretation=photometric,
    )
    transform = GrayscaleTransform(dataset, voi=voi)
    values = np.tile(np.array(stored, np.int16), 2048).reshape(64, 128)
    tabled, direct = transform(values), transform(values.astype(np.float64))
    assert (tabled == direct).all()


# ------------------------------------------------------------------------------------------------------------- multi-frame


def test_cine_times(tmp_path: Path) -> None:
    stored = np.zeros((4, 2, 2), np.uint8)
    cases: list[tuple[dict[str, Any], list[float | None]]] = [
        ({"FrameTime": "40"}, [0, 0.04, 0.08, 0.12]),
        ({"CineRate": 20}, [0, 0.05, 0.10, 0.15]),
        ({"FrameTimeVector": ["0", "10", "30", "5"]}, [0, 0.01, 0.04, 0.045]),
        ({}, [None] * 4),
        ({"FrameTime": "0"}, [None] * 4),
    ]
    for elements, times in cases:
        with DicomImage(save(grey(stored, **elements), tmp_path)) as image:
            measured = [image.timestamp(i) for i in range(4)]
            assert measured == pytest.approx(times)
            assert (image.fps is None) == (times[1] is None)


@pytest.mark.parametrize("table", [True, False])
def test_any_frame_of_a_compressed_cine(table: bool, tmp_path: Path) -> None:
    """With and without a Basic Offset Table, and cut in the middle: whole frames stay readable."""
    dataset = pydicom.dcmread(FOLDER / "examples_ybr_color.dcm")
    frames = list(generate_frames(dataset.PixelData, number_of_frames=30))
    dataset.PixelData = encapsulate(frames, has_bot=table)
    path = save(dataset, tmp_path)
    everything = pixel_array(dataset, raw=True)
    with DicomImage(path) as image:
        assert len(image) == 30
        assert image.fps == pytest.approx(30, rel=1e-3)
        for index in (29, 0, 17):
            difference = image.frame(index).astype(int) - convert_color_space(everything[index], "YBR_FULL_422", "RGB")
            assert np.abs(difference).max() <= 1
        with pytest.raises(IndexError):
            image.frame(30)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with DicomImage(cut) as image:
        image.frame(0)
        with pytest.raises(SourceError, match=r"frame 30 of 30: .*cut short"):
            image.frame(29)


def test_frames_in_several_fragments(tmp_path: Path) -> None:
    """More fragments than frames and no offset table: the codestreams' end markers divide them."""
    one = pydicom.dcmread(FOLDER / "MR_small_jp2klossless.dcm")
    codestream = next(generate_frames(one.PixelData, number_of_frames=1))
    dataset = grey(np.zeros((2, 64, 64), np.int16), WindowCenter=600, WindowWidth=1600)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([codestream, codestream], fragments_per_frame=3, has_bot=False)
    with DicomImage(save(dataset, tmp_path)) as image, DicomImage(FOLDER / "MR_small_jp2klossless.dcm") as single:
        assert (image.frame(0) == single.frame(0)).all()
        assert (image.frame(1) == single.frame(0)).all()


def test_extended_offset_table(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(FOLDER / "rtdose_rle.dcm")
    frames = list(generate_frames(dataset.PixelData, number_of_frames=15))
    value, offsets, lengths = pydicom.encaps.encapsulate_extended(frames)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = value, offsets, lengths
    with DicomImage(save(dataset, tmp_path)) as image, DicomImage(FOLDER / "rtdose_rle.dcm") as plain:
        assert all((image.frame(i) == plain.frame(i)).all() for i in range(15))


def test_memory_is_one_frame(tmp_path: Path) -> None:
    """Reading one frame of a large native cine must not read the others."""
    stored = np.arange(200, dtype=np.uint16)[:, None, None] + np.zeros((1, 128, 128), np.uint16)
    path = save(grey(stored), tmp_path)
    with DicomImage(path, "full") as image:
        reads: list[int] = []
        image._file = _Counting(path.read_bytes(), reads)  # type: ignore[assignment]
        assert image.frame(150)[0, 0, 0] == 150
    assert sum(reads) == 128 * 128 * 2


class _Counting(io.BytesIO):
    """Notes how many bytes are read."""

    def __init__(self, data: bytes, reads: list[int]) -> None:
        super().__init__(data)
        self.reads = reads

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.reads.append(len(data))
        return data


def test_truncated_native_cine_keeps_its_whole_frames(tmp_path: Path) -> None:
    path = save(grey(np.ones((10, 16, 16), np.uint16)), tmp_path)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[:-700])
    with DicomImage(cut) as image:
        image.frame(8 - 1)
        with pytest.raises(SourceError, match=r"frame 10 of 10: .*cut short: 4420 bytes of 5120"):
            image.frame(9)


# ------------------------------------------------------------------------------------------------------- hostile and private


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
