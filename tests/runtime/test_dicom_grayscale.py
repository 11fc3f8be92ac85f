"""Grey DICOM pictures as they are shown: modality LUT, VOI LUT and windows, padding, bit depths, each against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runtime.dicom_peers import installed, run
from runtime.made_dicom import RAMP, grey, save, shown

from edgemamba.runtime.dicom_grayscale import GrayscaleTransform, Voi, Window
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pytest.importorskip("pydicom")
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

pytestmark = pytest.mark.usefixtures("no_warnings")


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_values_above_bit_0(dtype: Any, syntax: str, high_bit: int, tmp_path: Path) -> None:
    """12 bits at the top or in the middle of 16, as old detectors wrote them, with overlay bits around them; as dcmtk reads them."""
    values = np.arange(0, 4096, 64).reshape(8, 8) - (2048 if dtype == np.int16 else 0)
    cells = ((values & 0xFFF) << (high_bit - 11)) | (0xFFFF ^ (0xFFF << (high_bit - 11)))
    dataset = grey(cells.astype(np.uint16).view(dtype), syntax, BitsStored=12, HighBit=high_bit)
    unit = (values - values.min()) / 4095
    assert np.abs(shown(dataset, tmp_path, "full") - unit * 65535).max() <= 0.5
    if installed("dcm2pnm"):
        theirs = run("dcm2pnm", "-M", "-W", "-O", "+Pid", "+opn", 12, tmp_path / "image.dcm").stdout.split()[4:]
        assert (np.array(theirs, int).reshape(8, 8) == values - values.min()).all()


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
