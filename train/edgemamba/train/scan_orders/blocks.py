"""Orders that divide a map: into windows, or into the classes of an atrous grid."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemamba.train.scan_orders.lines import divided, steps
from edgemamba.train.scan_orders.registry import Size, register_pattern


@register_pattern(
    "window{k}",
    example=3,
    axes=2,
    directions=lambda k: 1,
    multiple=True,
    parts=False,
    summary="windows of {k} x {k} row by row, row by row inside each (LocalMamba, arXiv:2403.09338)",
)
def _window(size: Size, device: torch.device | None, k: int) -> Tensor:
    _, width = size
    window, inside = divided(steps(size, device), k * k)
    down, across = divided(window, width // k)
    y, x = divided(inside, k)
    return ((down * k + y) * width + across * k + x).to(torch.int32)[None]


@register_pattern(
    "window{k}-reverse",
    example=3,
    axes=2,
    directions=lambda k: 1,
    multiple=True,
    parts=False,
    summary="the windows of window{k}, from the last position to the first",
)
def _window_reverse(size: Size, device: torch.device | None, k: int) -> Tensor:
    return _window(size, device, k).flip(1)


@register_pattern(
    "atrous{k}",
    example=2,
    axes=2,
    directions=lambda k: k * k,
    multiple=True,
    parts=True,
    summary="every {k}th row and column, a direction for each of the {k} x {k} ways (EfficientVMamba, arXiv:2403.09977)",
)
def _atrous(size: Size, device: torch.device | None, k: int) -> Tensor:
    """Direction ``j k + i`` visits the positions whose row is i and whose column is j modulo k: row by row for even i,
    column by column for odd i. k = 2 is the published one.
    """
    height, width = size
    high, wide = height // k, width // k
    step = torch.arange(high * wide, dtype=torch.int32, device=device)
    row_major, (x, y) = divided(step, wide), divided(step, high)
    column_major = (y, x)
    rows = []
    for j in range(k):
        for i in range(k):
            down, across = column_major if i % 2 else row_major
            rows.append((down * k + i) * width + across * k + j)
    return torch.stack(rows).to(torch.int32)
