"""Masks: which class each pixel or voxel is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.runtime.volumes.grids import Grid
from edgemamba.runtime.volumes.nifti import read_nifti

#: What a mask holds where nobody said what is there: such places count neither in the loss nor in the scores.
IGNORED = 255
#: Classes that a mask can tell apart beside it.
MOST_CLASSES = 255

Mask = NDArray[np.uint8]


def read_mask_picture(path: Path) -> Mask:
    """Class indices of a picture: uint8 (H, W). Of a picture with a palette these are the indices, not the colours.

    Raises:
        DataError: it cannot be read, or holds colours.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise DataError(
                    f"{path} is a mask of mode {picture.mode}; one number a pixel is needed: the class, in a grey or palette PNG"
                )
            values = np.asarray(picture)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a mask: {type(error).__name__}") from None
    return _indices(values, path)


def read_mask_volume(path: Path) -> tuple[Mask, Grid]:
    """Class indices of a NIfTI file: uint8 with its axes, and where they lie.

    Raises:
        DataError: it cannot be read, or holds more than one volume or fractions.
    """
    try:
        volume = read_nifti(path, 1)
    except SourceError as error:
        raise DataError(str(error)) from None
    return _indices(volume.channels[0], path), volume.grid


def _indices(values: NDArray[np.generic], path: Path) -> Mask:
    whole = np.asarray(values).astype(np.int64)
    if not np.array_equal(whole, values) or whole.min(initial=0) < 0 or whole.max(initial=0) > IGNORED:
        raise DataError(
            f"{path} holds values that are no classes; whole numbers of 0 to {MOST_CLASSES - 1} are, and {IGNORED} (ignored)"
        )
    return whole.astype(np.uint8)


def check_labels(mask: Mask, classes: int, path: Path) -> None:
    """Refuse labels that there are no classes for.

    Raises:
        DataError: names the label.
    """
    found = np.unique(mask)
    wrong = found[(found >= classes) & (found != IGNORED)]
    if wrong.size:
        raise DataError(
            f"{path} has the label {int(wrong[0])}; there are {classes} classes, so 0 to {classes - 1} are known, and {IGNORED} "
            "(ignored)"
        )


def resize_mask(mask: Mask, size: Sequence[int]) -> Mask:
    """The nearest pixel's or voxel's class on another grid, whose centres lie as those of :func:`resize` do."""
    if mask.shape == tuple(size):
        return mask
    values = torch.from_numpy(mask)[None, None].float()
    return F.interpolate(values, size=tuple(size), mode="nearest-exact")[0, 0].numpy().astype(np.uint8)
