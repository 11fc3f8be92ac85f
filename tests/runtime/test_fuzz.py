"""Damaged and hostile DICOM files and manifests: pixels, or one line that says why not, in bounded memory.

A few hundred examples as a test; ``pytest tests/runtime/test_fuzz.py --fuzz-seconds 600 -s`` goes on for that long, each of the
two, and says how many there were; ``--fuzz-seed`` lets another run try other files.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Fuzzing
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from runtime.bundled_dicom import dicom_folder

from edgemamba.runtime import open_source
from edgemamba.runtime.bundle import MANIFEST, Bundle
from edgemamba.runtime.errors import BundleError, SourceError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.memory import resident_bytes

pydicom = pytest.importorskip("pydicom")

FOLDER = dicom_folder()
# One or two of each transfer syntax, photometric interpretation and kind of pixel data; small, so that many are tried.
SEEDS = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",
    "rtdose.dcm",
    "rtdose_rle.dcm",
    "liver_1frame.dcm",
    "examples_palette.dcm",
    "examples_overlay.dcm",
    "dicomdirtests/DICOMDIR",
)
# Elements that decide how pixels are found, decoded and shown, and values that files should not have.
KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PlanarConfiguration", "NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "FrameTime", "FrameTimeVector", "CineRate"),
    *("PixelAspectRatio", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "PixelPaddingValue"),
    *("RedPaletteColorLookupTableDescriptor", "PresentationLUTShape", "SliceThickness", "InstanceNumber"),
)
NUMBERS = st.one_of(
    st.integers(-2, 66),
    st.sampled_from(
        [255, 256, 32767, 32768, 65535, 2**31 - 1, -(2**31), 1e308, 1e-308, -0.0, float("nan"), float("inf")]
    ),
)
VALUES = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=7),
    st.sampled_from(
        ["", "MONOCHROME1", "PALETTE COLOR", "YBR_FULL_422", "YBR_RCT", "RGB", "SIGMOID", "INVERSE", "\\", "x"]
    ),
)
MOST_GROWTH = 1 << 30  # bytes: decoding the largest frame that is allowed takes less


def fuzz(body: Callable[..., None], examples: int, fuzzing: Fuzzing) -> int:
    """Run the body on drawn data: a test's worth, or for the time that was asked for. How many rounds."""
    options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    rounds = 0
    for drawn in fuzzing.rounds():
        # A drawn test each round; always the same ones in a short run.
        seed(drawn)(options(given(st.data())(body)))()
        rounds += 1
    return rounds


def edited(content: bytes, data: st.DataObject) -> bytes:
    """The file with elements replaced, as pydicom writes it; unchanged where that cannot be written."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        for _ in range(data.draw(st.integers(1, 3))):
            setattr(dataset, data.draw(st.sampled_from(KEYWORDS)), data.draw(VALUES))
        out = io.BytesIO()
        dataset.save_as(out)
    except Exception:  # pydicom's writer is stricter than files are
        return content
    return out.getvalue()


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """The file with bytes overwritten, parts of it repeated or removed, or cut."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        kind = data.draw(st.sampled_from(["byte", "length", "repeat", "remove"]))
        if kind == "byte":
            changed[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "length":
            value = data.draw(st.sampled_from([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
            changed[at : at + 4] = value.to_bytes(4, "little")
        else:
            part = changed[at : at + data.draw(st.integers(1, 64))]
            changed[at : at + (len(part) if kind == "remove" else 0)] = b"" if kind == "remove" else part
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def check(frame: Frame) -> None:
    """What every frame of a DICOM file is."""
    kinds = {("uint8", 3), ("uint16", 1)}
    assert frame.pixels.ndim == 3
    assert (str(frame.pixels.dtype), frame.pixels.shape[2]) in kinds
    assert frame.pixels.size
    assert np.isfinite(frame.timestamp)
    json.dumps(frame.metadata, allow_nan=False)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("edgemamba.runtime").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("edgemamba.runtime").setLevel(logging.NOTSET)


def test_dicom_files(tmp_path: Path, fuzzing: Fuzzing) -> None:
    contents = {name: (FOLDER / name).read_bytes() for name in SEEDS}
    count = {"files": 0, "frames": 0, "refused": 0}
    before = resident_bytes() or 0

    def body(data: st.DataObject) -> None:
        content = contents[data.draw(st.sampled_from(SEEDS))]
        if data.draw(st.booleans()):
            content = edited(content, data)
        path = tmp_path / "image.dcm"
        path.write_bytes(damaged(content, data))
        count["files"] += 1
        reason = ""
        voi: Any = data.draw(st.sampled_from(["auto", "auto", "window", "lut", "full", "minmax"]))
        argument = f"dicom://{path}?square=1&overlays=1" if data.draw(st.booleans()) else path
        try:
            with open_source(argument, voi=voi) as source:
                for frame in islice(source, 3):
                    check(frame)
                    count["frames"] += 1
        except SourceError as error:
            count["refused"] += 1
            reason = str(error)
        assert "\n" not in reason

    rounds = fuzz(body, 400, fuzzing)
    growth = ((resident_bytes() or 0) - before) >> 20
    print(f"\n{count} in {rounds} rounds; resident memory grew by {growth} MiB")
    assert count["frames"] > count["files"] / 20, "too little is decoded to say anything about decoding"
    assert count["refused"] > count["files"] / 20
    assert growth < MOST_GROWTH >> 20


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["../x", "/etc/passwd", ""]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def replaced(value: Any, data: st.DataObject) -> Any:
    """The JSON value with one part of it, at any depth, replaced, renamed or removed."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        kind = data.draw(st.sampled_from(["deeper", "deeper", "remove", "rename"]))
        rest = {name: item for name, item in value.items() if name != key}
        if kind == "remove":
            return rest
        if kind == "rename":
            return {**rest, data.draw(st.text(max_size=12)): value[key]}
        return {**value, key: replaced(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], replaced(value[at], data), *value[at + 1 :]]
    return data.draw(JSON)


def test_manifests(colour_bundle: Path, tmp_path: Path, fuzzing: Fuzzing) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(colour_bundle, folder)
    original = (folder / MANIFEST).read_bytes()
    count = {"manifests": 0, "refused": 0}

    def body(data: st.DataObject) -> None:
        value = json.loads(original)
        for _ in range(data.draw(st.integers(0, 2))):
            value = replaced(value, data)
        content = json.dumps(value).encode()
        if data.draw(st.integers(0, 3)) == 0:
            content = damaged(content, data)
        (folder / MANIFEST).write_bytes(content)
        count["manifests"] += 1
        reason, names = "", []
        try:
            names = list(Bundle.load(folder).manifest.files)
        except BundleError as error:
            count["refused"] += 1
            reason = str(error)
        assert "\n" not in reason
        for name in names:
            assert (folder / name).resolve().is_relative_to(folder.resolve())

    rounds = fuzz(body, 200, fuzzing)
    print(f"\n{count} in {rounds} rounds")
    assert count["manifests"] > count["refused"] > count["manifests"] / 4
