"""Orders along curves, by a sort: zigzag, diagonal, spiral, radial, Hilbert, Morton.

Each is given as the keys of the positions; the walk takes the positions by rising key. Keys are whole numbers and no two are
equal, so that the walk is the same wherever it is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemamba.train.scan_orders.lines import divided
from edgemamba.train.scan_orders.registry import Size, register_order

# Of the grid's rows and columns (int64 arrays of NumPy or tensors), its height and width, and the library they are of.
Key = Callable[[Any, Any, int, int, ModuleType], Any]

# Curves on a square of 2^LEVELS: maps may have up to 4096 positions a side. The number is fixed, and even, so that a map has
# the same walk whether its size is known or symbolic, and the curve starts along the first row or column alike.
LEVELS = 12


def register_curve(name: str, summary: str) -> Callable[[Key], Key]:
    """Register the walk by rising ``key`` (decorator)."""

    def register(key: Key) -> Key:
        def build(size: Size, device: torch.device | None) -> Tensor:
            height, width = size
            if isinstance(height, int) and isinstance(width, int):
                # Not in the graph: exporters do not fold a sort, and would sort again in every run.
                y, x = np.divmod(np.arange(height * width, dtype=np.int64), width)
                walk = np.argsort(key(y, x, height, width, np), kind="stable").astype(np.int32)
                return torch.tensor(walk, device=device)[None]
            position = torch.arange(height * width, dtype=torch.int64, device=device)
            y, x = divided(position, width)
            return torch.argsort(key(y, x, height, width, torch)).to(torch.int32)[None]

        register_order(name, directions=1, axes=2, summary=summary)(build)
        return key

    return register


@register_curve("diagonal", "anti-diagonals, each from its upper right end")
def _diagonal(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    return (y + x) * height + y


@register_curve("zigzag", "anti-diagonals there and back, as JPEG reads its coefficients (ITU-T T.81, figure 5)")
def _zigzag(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    diagonal = y + x
    return diagonal * (height + width) + xp.where(diagonal % 2 == 0, x, y)


@register_curve("spiral", "round the border, clockwise from the upper left, and inwards")
def _spiral(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    ring = xp.minimum(xp.minimum(y, x), xp.minimum(height - 1 - y, width - 1 - x))
    high, wide, down, across = height - 2 * ring, width - 2 * ring, y - ring, x - ring
    right, bottom = wide - 1, high - 1
    left_side = 2 * right + bottom + (bottom - down)
    lower_side = right + bottom + (right - across)
    along = xp.where(down == bottom, lower_side, left_side)
    along = xp.where(across == right, right + down, along)
    along = xp.where(down == 0, across, along)
    return height * width - high * wide + along


@register_curve("radial", "by distance from the centre, clockwise from the right among equals")
def _radial(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    # Doubled, so that the centre of an even extent is a whole number too.
    down, across = 2 * y - (height - 1), 2 * x - (width - 1)
    distance = down * down + across * across
    # An angle without trigonometry: the quadrant, and how far from its first axis to its second.
    lower, left = (down > 0) | (down == 0) & (across > 0), (across < 0) | (across == 0) & (down > 0)
    quadrant = xp.where(lower, xp.where(left, 1 + 0 * y, 0 * y), xp.where(left, 2 + 0 * y, 3 + 0 * y))
    reach = xp.abs(down) + xp.abs(across)
    within = xp.where(quadrant % 2 == 0, xp.abs(down), xp.abs(across))
    # Of equally distant points no two have the same angle after this rounding, for maps within LEVELS.
    angle = (quadrant * 2**16) + within * 2**16 // xp.where(reach == 0, 1 + 0 * y, reach)
    return distance * 2**19 + angle


@register_curve("morton", "Z-order: the bits of row and column interleaved")
def _morton(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    key = 0 * x
    for bit in range(LEVELS):
        key = key + (x // 2**bit % 2) * 4**bit + (y // 2**bit % 2) * (2 * 4**bit)
    return key


@register_curve("hilbert", "Hilbert's curve, leaving out what lies beyond the map (Hilbert, 1891)")
def _hilbert(y: Any, x: Any, height: int, width: int, xp: ModuleType) -> Any:
    key = 0 * x
    for bit in reversed(range(LEVELS)):
        side = 2**bit
        right, lower = x // side % 2, y // side % 2
        # The quadrants in the order upper left, lower left, lower right, upper right.
        key = key + (3 * right + lower - 2 * right * lower) * side * side
        # The curve inside the first quadrant is transposed, in the last one turned the other way.
        x, y = x % side, y % side
        mirrored_x, mirrored_y = side - 1 - x, side - 1 - y
        flip = (lower == 0) & (right == 1)
        x, y = xp.where(flip, mirrored_x, x), xp.where(flip, mirrored_y, y)
        swap = lower == 0
        x, y = xp.where(swap, y, x), xp.where(swap, x, y)
    return key
