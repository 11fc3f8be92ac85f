"""Where a slice lies in the patient, and how large its pixels are (PS3.3 C.7.6.2, C.7.6.3.1.7, C.7.6.16.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.dicom_grayscale import functional_group
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.resampling import resample

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["geometry", "numbers", "orientation", "pixel_aspect_ratio", "slice_position", "squared"]

#: Pixels of a picture that was made square; such files are ultrasound and film scans, far smaller.
MOST_SQUARED = 1 << 26


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of a multi-valued element, or None."""
    if value is None or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return None
    try:
        found = tuple(float(item) for item in value)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def orientation(dataset: Dataset, index: int = 0) -> tuple[float, ...] | None:
    """Image Orientation (Patient): the direction cosines of a row and of a column; None where there is none of use."""
    group = functional_group(dataset, index, "PlaneOrientationSequence")
    return numbers(group.get("ImageOrientationPatient"), 6)


def slice_position(dataset: Dataset, index: int = 0) -> float | None:
    """Millimetres along the slice's normal: Image Position (Patient) projected on the cross product of row and column.

    None where position or orientation is missing, or the orientation spans no plane.
    """
    cosines = orientation(dataset, index)
    group = functional_group(dataset, index, "PlanePositionSequence")
    position = numbers(group.get("ImagePositionPatient"), 3)
    if cosines is None or position is None:
        return None
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    if not length > 1e-3:
        return None
    return sum(n * p for n, p in zip(normal, position, strict=True)) / length


def pixel_aspect_ratio(dataset: Dataset, index: int = 0) -> float:
    """Height of a pixel by its width: Pixel Aspect Ratio, else by Pixel Spacing; 1 where neither says."""
    for values in (numbers(dataset.get("PixelAspectRatio"), 2), _spacing(dataset, index)):
        # Beyond 100 : 1 it is an error of the file, and a way to ask for much memory.
        if values is not None and min(values) > 0 and 0.01 <= values[0] / values[1] <= 100:
            return values[0] / values[1]
    return 1.0


def squared(pixels: NDArray[np.generic], ratio: float) -> NDArray[np.generic]:
    """The picture with square pixels: the coarser axis enlarged (bilinear), the finer left as it is.

    Args:
        pixels: uint8 or uint16 (H, W, C).
        ratio: height of a pixel by its width.

    Raises:
        SourceError: it would have more than :data:`MOST_SQUARED` pixels.
    """
    height, width = pixels.shape[:2]
    size = (max(1, round(height * ratio)), width) if ratio > 1 else (height, max(1, round(width / ratio)))
    if size == (height, width):
        return pixels
    if size[0] * size[1] > MOST_SQUARED:
        raise SourceError(
            f"with square pixels its picture would be {size[1]} x {size[0]}, more than {MOST_SQUARED} pixels"
        )
    values = resample(pixels, size, "bilinear", (0, 0, *size))
    return np.rint(np.clip(values, 0, 255 if pixels.dtype == np.uint8 else 65535)).astype(pixels.dtype)


def geometry(dataset: Dataset, index: int = 0) -> dict[str, Any]:
    """JSON-able facts, in millimetres; only those that are known. ``pixel_spacing``: between rows, between columns."""
    facts: dict[str, Any] = {}
    if (spacing := _spacing(dataset, index)) is not None:
        facts["pixel_spacing"] = list(spacing)
    if abs((ratio := pixel_aspect_ratio(dataset, index)) - 1) > 1e-6:
        facts["pixel_aspect_ratio"] = round(ratio, 6)
    if (position := slice_position(dataset, index)) is not None:
        facts["slice_position"] = round(position, 4)
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    if (thickness := numbers([measures.get("SliceThickness") or None], 1)) is not None:
        facts["slice_thickness"] = thickness[0]
    return facts


def _spacing(dataset: Dataset, index: int) -> tuple[float, ...] | None:
    return numbers(functional_group(dataset, index, "PixelMeasuresSequence").get("PixelSpacing"), 2)
