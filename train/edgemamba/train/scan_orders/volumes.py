"""Orders of volumes (depth, height, width). Raster and reverse (:mod:`.lines`) are defined for any number of axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.scan_orders.lines import divided, steps
from edgemamba.train.scan_orders.registry import Size, register_order, register_pattern


@register_order(
    "inter-slice",
    directions=1,
    axes=3,
    summary="through all slices at one place, then at the next (one position of each depth plane in turn)",
)
def _inter_slice(size: Size, device: torch.device | None) -> Tensor:
    depth, height, width = size
    place, plane = divided(steps(size, device), depth)
    return (plane * (height * width) + place).to(torch.int32)[None]


@register_pattern(
    "slices{k}",
    example=4,
    axes=3,
    directions=lambda k: 3,
    multiple=False,
    parts=False,
    summary="raster, reverse, and through {k} equal parts of the sequence in turn (SegMamba, arXiv:2401.13560)",
)
def _slices(size: Size, device: torch.device | None, k: int) -> Tensor:
    """SegMamba fixes the number of parts, 64, 32, 16 and 8 in its four stages: where a stage has as many depth planes, the
    third direction is "inter-slice".

    Raises:
        ScanArgumentError: the number of positions is not a multiple of k (not asked of symbolic sizes).
    """
    positions = math.prod(size)
    if isinstance(positions, int) and positions % k:
        raise ScanArgumentError(
            f"scan order 'slices{k}' takes a multiple of {k} positions, not the {positions} of {tuple(size)}"
        )
    forward = steps(size, device)
    place, part = divided(forward, k)
    return torch.stack([forward, forward.flip(0), part * (positions // k) + place]).to(torch.int32)
