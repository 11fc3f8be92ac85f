"""From a model's logits, slab by slab, to a mask on the source's grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.extras import require
from edgemamba.runtime.volumes.grids import linear_places
from edgemamba.runtime.volumes.windows import Slab

__all__ = ["mask_of"]


def mask_of(slabs: Iterable[Slab], depth: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The class with the largest logit at each voxel of another grid over the same space; of equals the first.

    Logits, not labels, are interpolated (linear), so that borders stay smooth. Held at a time: two slices of logits.

    Args:
        slabs: of the model's grid, in order.
        depth: slices of the model's grid.
        shape: of the grid that is wanted.

    Returns:
        uint8 of ``shape``.
    """
    mask = np.empty(shape, np.uint8)
    slices = _slices(slabs)
    index, held = next(slices)
    below = held
    for target, (low, high, weight) in enumerate(zip(*linear_places(depth, shape[0]), strict=True)):
        while index < high:
            below = held
            index, held = next(slices)
        # ``held`` is the slice ``index``; the wanted pair is (below, held), or ``held`` alone where no weight is left.
        lower = held if low == index else below
        mask[target] = _largest(lower if weight == 0 else lower * (1 - weight) + held * weight, shape[1:])
    return mask


def _slices(slabs: Iterable[Slab]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Index and logits (K, H, W) of each slice."""
    for slab in slabs:
        for offset in range(slab.logits.shape[1]):
            yield slab.start + offset, slab.logits[:, offset]


def _largest(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """(K, h, w) -> the best class at each of (H, W) places."""
    if logits.shape[1:] == size:
        return logits.argmax(axis=0).astype(np.uint8)
    cv2 = require("cv2", purpose="resampling volumes")
    label = np.zeros(size, np.uint8)
    best: NDArray[np.float32] | None = None
    for index, plane in enumerate(logits):
        wide = cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=cv2.INTER_LINEAR)
        if best is None:
            best = wide
            continue
        better = wide > best
        label[better] = index
        best[better] = wide[better]
    return label
