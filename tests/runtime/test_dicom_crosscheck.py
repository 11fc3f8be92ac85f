"""Every file that pydicom's wheel carries and both decode, against dcmtk: stored values, pixel by pixel.

dcmtk (dcm2pnm, dcmj2pnm, dcml2pnm) shares no code with pydicom and its plugins. It is told to apply neither modality nor VOI
LUT, no overlay and no inversion, and to write as many bits as are stored, so that its output is the stored values.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.bundled_dicom import dicom_folder

from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pytest.importorskip("pydicom")

if shutil.which("dcm2pnm") is None:
    pytest.skip("dcm2pnm is not installed: apt install dcmtk", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("no_warnings")
FOLDER = dicom_folder()
TOOLS = tuple(tool for tool in ("dcm2pnm", "dcmj2pnm", "dcml2pnm") if shutil.which(tool))
STORED = ("-M", "-W", "-O", "+Pid")
OTHER_SUFFIXES = (".py", ".pyc", ".json", ".txt", ".gz", ".icc", ".dump")
# 32 bits in big endian words of 16 (retired): dcmtk swaps the bytes of each word (PS3.5 A.3), pydicom those of the whole value.
# The files' values are those of rtdose.dcm only if read as pydicom does.
WORDS_SWAPPED = ("rtdose_expb.dcm", "rtdose_expb_1frame.dcm")
# Converted to RGB by both, from YBR that is stored uncompressed: the two round differently.
ROUNDED = {"SC_ybr_full_422_uncompressed.dcm": 1}


def decodable() -> list[str]:
    """Files whose first frame is decoded here."""
    names = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(FOLDER.rglob("*")):
            if not path.is_file() or path.suffix in OTHER_SUFFIXES:
                continue
            try:
                with DicomImage(path) as image:
                    image.frame(0)
            except SourceError:
                continue
            names.append(path.relative_to(FOLDER).as_posix())
    return names


def dcmtk(path: Path, frame: int, *output: str) -> NDArray[np.int64] | None:
    """What the first of dcmtk's tools that can decode the file says: (H, W) or (H, W, 3); None where none can."""
    for tool in TOOLS:
        run = subprocess.run(
            [tool, *STORED, "+F", str(frame + 1), *output, str(path)], capture_output=True, check=False
        )
        if run.returncode == 0 and run.stdout:
            words = b" ".join(line for line in run.stdout.split(b"\n") if not line.startswith(b"#")).split()
            width, height = int(words[1]), int(words[2])
            shape = {b"P2": (height, width), b"P3": (height, width, 3)}[words[0]]
            return np.array(words[4:], np.int64).reshape(shape)
    return None


def stored(image: DicomImage, frame: int) -> NDArray[np.int64]:
    """Stored values, from 0 on: dcmtk's output has no sign. Colour as RGB."""
    values, _ = image._decode(frame)
    if values.ndim == 3 or image._dataset.PhotometricInterpretation == "PALETTE COLOR":
        return image.frame(frame).astype(np.int64)
    bits = int(image._dataset.BitsStored)
    return values.astype(np.int64) + (1 << bits - 1) * int(image._dataset.get("PixelRepresentation", 0))


@pytest.mark.parametrize("name", decodable())
def test_stored_values_equal_dcmtks(name: str) -> None:
    path = FOLDER / name
    with DicomImage(path) as image:
        for frame in sorted({0, len(image) - 1}):
            ours = stored(image, frame)
            # Colour (also of a palette) has 8 bits in all of these files.
            output: Any = ("+opn", str(image._dataset.BitsStored)) if ours.ndim == 2 else ("+opb",)
            theirs = dcmtk(path, frame, *output)
            if theirs is None:
                assert image._syntax.name.startswith(("JPEG 2000", "High-Throughput")), "dcmtk should decode this"
                pytest.skip(f"dcmtk decodes no {image._syntax.name}")
            if path.name in WORDS_SWAPPED:
                theirs = (theirs >> 16) + ((theirs & 0xFFFF) << 16)
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= ROUNDED.get(path.name, 0)


def test_enough_was_compared() -> None:
    """Seventy at least are of other syntaxes than JPEG 2000, which dcmtk does not decode."""
    compared = 0
    for name in decodable():
        with DicomImage(FOLDER / name) as image:
            compared += not image._syntax.name.startswith(("JPEG 2000", "High-Throughput"))
    assert compared >= 70
