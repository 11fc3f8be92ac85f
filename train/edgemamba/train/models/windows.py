"""Maps cut into square windows, each a short sequence of its own, and put together again.

Sizes may be symbolic under :mod:`torch.export`. A trace asks of every axis of a tensor whether it is one, and of every reshaping
which axes stay as they are; so rows and columns of windows never are axes of their own here, nor is the batch beside them:
the answers for the example (of a published size, say, where one window covers the map) would become conditions on every other.
"""

from __future__ import annotations

from torch import Tensor

from edgemamba.train.models.padding import crop_map, pad_map, round_up


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B n, w^2, C): the n windows of each map, row by row, and the positions in each, row by row.

    Where the map is not a multiple of the window, zeros are put below it and on its right.
    """
    x = pad_map(x, window)
    if not _is_one_window(x.shape[1], x.shape[2], window):
        for _ in ("rows", "columns"):
            x = x.flatten(0, 1).unflatten(0, (-1, window)).transpose(1, 2)
    return x.flatten(1, 2)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B n, w^2, C) -> (B, height, width, C): the inverse of :func:`to_windows`, without what it put there."""
    padded = round_up(height, window), round_up(width, window)
    x = x.unflatten(1, (window, window))
    if not _is_one_window(*padded, window):
        for side in reversed(padded):
            x = x.transpose(1, 2).flatten(0, 1).unflatten(0, (-1, side))
    return crop_map(x, height, width)


def _is_one_window(height: int, width: int, window: int) -> bool:
    """Whether a window is the whole map, with nothing to be moved; False of symbolic sizes, of which that is not asked."""
    return isinstance(height, int) and isinstance(width, int) and height == width == window
