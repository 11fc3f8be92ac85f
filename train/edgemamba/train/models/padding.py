"""Maps made larger, so that their sides are whole multiples of a step or of a window, and small again.

Sizes may be symbolic under :mod:`torch.export`. There, a row too many and then a selection take the place of exact paddings and
slices: a trace would ask of a padding whether it is empty, and of a slice whether it lies densely in memory, and the answer
for its example (an even size, say) would become a condition on every other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not below ``size``."""
    return (size + multiple - 1) // multiple * multiple


def pad_map(x: Tensor, multiple: int) -> Tensor:
    """(B, H, W, C) -> with zeros below it and on its right up to multiples; ``x`` itself where nothing is missing."""
    if multiple == 1:
        return x
    sides = (x.shape[1], x.shape[2])
    below, right = (-side % multiple if isinstance(side, int) else multiple - 1 for side in sides)
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    for axis, side in enumerate(sides, start=1):
        if not isinstance(side, int):
            x = x.index_select(axis, torch.arange(round_up(side, multiple), device=x.device))
    return x


def crop_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H', W', C) -> its first rows and columns, (B, height, width, C); ``x`` itself where these are all."""
    for axis, side in enumerate((height, width), start=1):
        if not isinstance(side, int):
            x = x.index_select(axis, torch.arange(side, device=x.device))
        elif side != x.shape[axis]:
            x = x.narrow(axis, 0, side)
    return x
