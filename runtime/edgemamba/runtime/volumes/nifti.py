"""NIfTI-1 and NIfTI-2: volumes in, masks out. The header is believed only as far as its file can bear it."""

from __future__ import annotations

import gzip
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SinkError, SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.volumes.grids import Grid
from edgemamba.runtime.whole_files import write_whole

__all__ = [
    "NIFTI_SUFFIXES",
    "NiftiForms",
    "NiftiVolumes",
    "is_nifti",
    "nifti_channels",
    "read_nifti",
    "write_nifti_mask",
]

LOGGER = logging.getLogger("edgemamba.runtime")

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_NIFTI1, _NIFTI2 = 348, 540
# Where the voxels begin: beyond the header come extensions (text), of kilobytes.
_LARGEST_OFFSET = 1 << 24
_UNITS = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
# NIfTI's space (RAS) and DICOM's (LPS).
_MIRROR = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER = 1  # the code of NIFTI_XFORM_SCANNER_ANAT


@dataclass(frozen=True)
class NiftiForms:
    """How a file states where it lies, twice or not at all. Programs differ in which statement they believe, so a mask makes
    the same ones as its source, and lies over it in all of them.

    Attributes:
        sform, qform: codes of the two statements; 0 of one that is not made.
        placed: float64 (4, 4), the qform's: indices -> RAS mm; None where there is none.
    """

    sform: int = _SCANNER
    qform: int = 0
    placed: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class NiftiVolumes:
    """What a file holds.

    Attributes:
        channels: float32 (X, Y, Z), one for each volume of a fourth axis.
        grid: of them; the axes are the file's.
        forms: what it says of its place.
    """

    channels: tuple[NDArray[np.float32], ...]
    grid: Grid
    forms: NiftiForms


def is_nifti(path: Path) -> bool:
    """By the name."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def nifti_channels(path: Path) -> int:
    """How many volumes the header of a file states.

    Raises:
        SourceError: it cannot be read, or the header is damaged.
        MissingExtraError: nibabel is not installed.
    """
    nib = require("nibabel", purpose="reading NIfTI")
    with _damage_named(path):
        return _check(_header(nib, path), path)[1]


def read_nifti(path: Path, channels: int) -> NiftiVolumes:
    """Read a file of one volume, or of ``channels`` along its fourth axis.

    Raises:
        SourceError: it cannot be read, is damaged or larger than a volume may be, holds another number of volumes, or values
            that are not finite.
        MissingExtraError: nibabel is not installed.
    """
    nib = require("nibabel", purpose="reading NIfTI")
    with _damage_named(path):
        header = _header(nib, path)
        shape, count = _check(header, path)
        if count not in (1, channels):
            raise SourceError(f"{path}: it holds {count} volumes; the model takes {channels}")
        image = nib.load(path)
        unit = _UNITS[image.header.get_xyzt_units()[0]]
        affine = _MIRROR @ np.asarray(image.affine, np.float64)
        affine[:3] *= unit
        grid = Grid(shape, affine)
        grid.check(str(path))
        volumes = tuple(_values(image, shape, index, path) for index in range(count))
        forms = _forms(image.header, unit)
    if not (forms.sform or forms.qform):
        LOGGER.warning("%s states no orientation (its sform and qform codes are 0); NIfTI's default is taken", path)
    return NiftiVolumes(volumes, grid, forms)


def _forms(header: Any, unit: float) -> NiftiForms:
    placed, code = header.get_qform(coded=True)
    if placed is not None:
        placed = np.asarray(placed, np.float64)
        placed[:3] *= unit
    return NiftiForms(int(header["sform_code"]), int(code), placed)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """SourceError, which names the file, in place of what a parser may raise."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # any parser may stumble over damaged bytes
        raise SourceError(f"{path}: this is no NIfTI file, or it is damaged ({type(error).__name__})") from None


def _header(nib: Any, path: Path) -> Any:
    """The first bytes, parsed on their own: before nibabel reads as much as they ask for."""
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        raw = file.read(_NIFTI2)
    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}  # type: ignore[arg-type]
    if _NIFTI1 in sizes and len(raw) >= _NIFTI1:
        return nib.Nifti1Header(raw[:_NIFTI1])
    if _NIFTI2 in sizes and len(raw) == _NIFTI2:
        return nib.Nifti2Header(raw)
    raise SourceError(f"{path}: this is no NIfTI file")


def _check(header: Any, path: Path) -> tuple[tuple[int, int, int], int]:
    """Shape and number of volumes, where both are sane and the file can hold them."""
    sides = [int(side) for side in header.get_data_shape()]
    while len(sides) > 4 and sides[-1] == 1:
        sides.pop()
    if len(sides) not in (3, 4) or min(sides) < 1:
        size = " x ".join(map(str, sides)) or "no"
        raise SourceError(f"{path}: {size} voxels; a volume has three axes, and a fourth where there are several")
    shape = (sides[0], sides[1], sides[2])
    Grid(shape, np.eye(4)).check(str(path))
    offset = int(header.get_data_offset())
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise SourceError(f"{path}: its header says that voxels begin at byte {offset}")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise SourceError(f"{path}: its voxels are {dtype}, not grey values")
    held = path.stat().st_size
    if not path.name.lower().endswith(".gz") and held < offset + math.prod(sides) * dtype.itemsize:
        raise SourceError(f"{path}: the file is cut short; it has {held} bytes")
    return shape, sides[3] if len(sides) == 4 else 1


def _values(image: Any, shape: tuple[int, int, int], index: int, path: Path) -> NDArray[np.float32]:
    part = image.dataobj if len(image.shape) == 3 else image.dataobj[(..., index, *(0,) * (len(image.shape) - 4))]
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, which is refused
        values = np.asarray(part, np.float32).reshape(shape)
    spoiled = values.size - int(np.isfinite(values).sum())
    if spoiled:
        raise SourceError(
            f"{path}: {spoiled} of its {values.size} voxels are not finite (NaN or infinite); replace them first"
        )
    return values


def write_nifti_mask(path: Path, mask: NDArray[np.uint8], grid: Grid, forms: NiftiForms, flip_axes: bool) -> None:
    """Write a mask beside its source: same shape, same place, uint8.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        mask: on ``grid``.
        grid: the source's.
        forms: what the source says of its place, and so the mask.
        flip_axes: write the axes in reverse order: of DICOM's (slice, row, column) NIfTI's custom is (column, row, slice).

    Raises:
        SinkError: it cannot be written.
    """
    nib = require("nibabel", purpose="writing NIfTI")
    affine = _MIRROR @ grid.affine
    if flip_axes:
        mask, affine = mask.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
    kind = nib.Nifti1Image if max(mask.shape) < 1 << 15 else nib.Nifti2Image  # NIfTI-1 counts in 16 bits
    image = kind(np.asfortranarray(mask), None)
    if forms.sform or forms.qform:
        image.set_qform(affine if forms.placed is None else forms.placed, forms.qform)
        image.set_sform(affine, forms.sform)
    else:
        image.header.set_zooms(grid.steps)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", 6, packed, mtime=0) as file:  # neither name nor time of its making
            file.write(data)
        data = packed.getvalue()
    try:
        write_whole(path, data, private=True)
    except OSError as error:
        raise SinkError(f"{path} cannot be written: {error.strerror or error}") from None
