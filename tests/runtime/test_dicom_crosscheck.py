"""Every file that pydicom's wheel carries and both decode, against dcmtk, or GDCM for JPEG 2000: stored values, pixel by pixel.

dcmtk (dcm2pnm, dcmj2pnm, dcml2pnm) shares no code with pydicom and its plugins. It is told to apply neither modality nor VOI
LUT, no overlay and no inversion, and to write as many bits as are stored, so that its output is the stored values. It decodes no
JPEG 2000; those files are decompressed by GDCM's gdcmconv.
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


def gdcm(path: Path, frame: int, offset: int, folder: Path) -> NDArray[np.int64]:
    """What GDCM says, by way of a decompressed file, whose Bits Stored it may correct."""
    if shutil.which("gdcmconv") is None:
        pytest.skip("gdcmconv is not installed: apt install libgdcm-tools")
    subprocess.run(["gdcmconv", "--raw", path, folder / "raw.dcm"], capture_output=True, check=True)
    with DicomImage(folder / "raw.dcm") as image:
        return stored(image, frame, offset)


def offset_of(image: DicomImage) -> int:
    """What makes signed values begin at 0: dcmtk's output has no sign."""
    return (1 << int(image._dataset.BitsStored) - 1) * int(image._dataset.get("PixelRepresentation", 0))


def stored(image: DicomImage, frame: int, offset: int) -> NDArray[np.int64]:
    """Stored values, with the offset added. Colour as RGB."""
    values, _ = image._decode(frame)
    if values.ndim == 3 or image._dataset.PhotometricInterpretation == "PALETTE COLOR":
        return image.frame(frame).astype(np.int64)
    return values.astype(np.int64) + offset


@pytest.mark.parametrize("name", decodable())
def test_stored_values_equal_dcmtks_or_gdcms(name: str, tmp_path: Path) -> None:
    path = FOLDER / name
    with DicomImage(path) as image:
        for frame in sorted({0, len(image) - 1}):
            ours = stored(image, frame, offset_of(image))
            # Colour (also of a palette) has 8 bits in all of these files.
            output: Any = ("+opn", str(image._dataset.BitsStored)) if ours.ndim == 2 else ("+opb",)
            theirs = dcmtk(path, frame, *output)
            if theirs is None:
                assert image._syntax.name.startswith("JPEG 2000"), "dcmtk should decode this"
                theirs = gdcm(path, frame, offset_of(image), tmp_path)
            if path.name in WORDS_SWAPPED:
                theirs = (theirs >> 16) + ((theirs & 0xFFFF) << 16)
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= ROUNDED.get(path.name, 0)


def test_enough_is_compared() -> None:
    assert len(decodable()) >= 86
