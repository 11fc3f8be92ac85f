"""What goes into an engine and comes out of it, held against the manifest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.bundle import TensorCard
from edgemamba.runtime.errors import EngineError


def check_input(frames: NDArray[np.generic], card: TensorCard) -> None:
    """Raise EngineError where the array is not what the manifest says the graph takes."""
    expected = f"{card.dtype} ({', '.join(map(str, card.shape))})"
    if not isinstance(frames, np.ndarray):
        raise EngineError(f"{card.name}: {type(frames).__name__}, expected an array of {expected}")
    sizes: dict[str, int] = {}
    fits = len(frames.shape) == len(card.shape) and all(
        found == (extent if isinstance(extent, int) else sizes.setdefault(extent, found))
        for found, extent in zip(frames.shape, card.shape, strict=True)
    )
    if str(frames.dtype) != card.dtype or not fits:
        raise EngineError(f"{card.name}: {frames.dtype} {frames.shape}, expected {expected}")


def empty_output(card: TensorCard) -> NDArray[np.generic]:
    """An output for no frames at all: 0 wherever the extent varies."""
    return np.zeros([extent if isinstance(extent, int) else 0 for extent in card.shape], card.dtype)
