"""Sliding windows with blending, in NumPy, and in the memory of one row of windows.

Windows stand where MONAI's ``sliding_window_inference`` puts them and weigh what they weigh there, so that a model gives on a
device what it gave in its validation; a test compares the two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Slab", "crop", "slide", "weights", "window_starts"]

# Standard deviation of the Gaussian, as a share of the patch; least weight.
_SIGMA = 0.125
_LEAST = 1e-3

Size = tuple[int, int, int]
#: float32 (B, C, D, H, W) -> float32 (B, K, D, H, W).
Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Slab:
    """Logits that no later window changes: float32 (K, depth, H, W), of the slices from ``start``."""

    start: int
    logits: NDArray[np.float32]


def _axis_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Where windows begin along one axis; before it, if the patch is longer: then half of what is missing goes in front."""
    if length <= patch:
        return [-((patch - length) // 2)]
    step = max(1, int(patch * (1 - overlap)))
    count = 1 + math.ceil((length - patch) / step)
    return [min(i * step, length - patch) for i in range(count)]


def window_starts(shape: Sequence[int], patch: Size, overlap: float) -> list[Size]:
    """First voxel of each window, in the order in which they run; negative where the volume is smaller than the patch."""
    axes = [_axis_starts(side, wanted, overlap) for side, wanted in zip(shape, patch, strict=True)]
    return [(a, b, c) for a, b, c in itertools.product(*axes)]


def weights(patch: Size, blending: Literal["gaussian", "constant"]) -> NDArray[np.float32]:
    """How much each voxel of a window counts: float32 of the patch's shape."""
    if blending == "constant":
        return np.ones(patch, np.float32)
    curves = []
    for side in patch:
        x = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        curves.append(np.exp(x**2 / np.float32(-2 * (_SIGMA * side) ** 2)))
    product = curves[0][:, None, None] * curves[1][:, None] * curves[2]
    return np.maximum(product, np.float32(max(float(product.min()), _LEAST)))


def crop(values: NDArray[np.float32], start: Size, patch: Size) -> NDArray[np.float32]:
    """A window of (C, D, H, W), zero where it leaves the volume: float32 (C, *patch)."""
    inside = [
        slice(max(0, first), min(side, first + wanted))
        for first, side, wanted in zip(start, values.shape[1:], patch, strict=True)
    ]
    window = np.zeros((values.shape[0], *patch), np.float32)
    place = [slice(part.start - first, part.stop - first) for part, first in zip(inside, start, strict=True)]
    window[(slice(None), *place)] = values[(slice(None), *inside)]
    return window


def slide(
    values: NDArray[np.float32],
    patch: Size,
    predict: Predict,
    *,
    overlap: float = 0.5,
    blending: Literal["gaussian", "constant"] = "gaussian",
    batch: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Slab]:
    """Run a model over a volume, window by window, and give its blended logits from the first slice to the last.

    Held at a time: logits of one patch's depth over the whole plane, never of the whole volume.

    Args:
        values: float32 (C, D, H, W).
        patch: of the model.
        predict: the model.
        overlap: share of a window that the next one covers again.
        blending: see :func:`weights`.
        batch: windows a call, at most; all of one row.
        progress: called with the number of windows done, and of all, after each call of the model.

    Yields:
        Slabs that meet, without a gap.
    """
    shape = values.shape[1:]
    rows = _axis_starts(shape[0], patch[0], overlap)
    planes = [(b, c) for _, b, c in window_starts((patch[0], *shape[1:]), patch, overlap)]
    importance = weights(patch, blending)
    padded = tuple(max(side, wanted) for side, wanted in zip(shape[1:], patch[1:], strict=True))
    lead = tuple(max(0, (wanted - side) // 2) for side, wanted in zip(shape[1:], patch[1:], strict=True))
    weight = np.zeros((patch[0], *padded), np.float32)
    total: NDArray[np.float32] | None = None
    done = 0
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        for first in range(0, len(planes), batch):
            places = planes[first : first + batch]
            logits = predict(np.stack([crop(values, (row, *place), patch) for place in places]))
            if total is None:
                total = np.zeros((logits.shape[1], patch[0], *padded), np.float32)
            for place, window in zip(places, logits, strict=True):
                b, c = (at + before for at, before in zip(place, lead, strict=True))
                where = (slice(None), slice(b, b + patch[1]), slice(c, c + patch[2]))
                total[(slice(None), *where)] += importance * window
                weight[where] += importance
            done += len(places)
            progress(done, len(rows) * len(planes))
        assert total is not None
        finished = patch[0] if following is None else following - row
        begin, end = max(0, -row), min(finished, shape[0] - row)
        kept = (slice(begin, end), slice(lead[0], lead[0] + shape[1]), slice(lead[1], lead[1] + shape[2]))
        yield Slab(row + begin, np.divide(total[(slice(None), *kept)], weight[kept], dtype=np.float32))
        for array in (total, weight):  # what the next row adds to comes first
            rest = array[..., finished:, :, :].copy()
            array[..., : patch[0] - finished, :, :] = rest
            array[..., patch[0] - finished :, :, :] = 0
