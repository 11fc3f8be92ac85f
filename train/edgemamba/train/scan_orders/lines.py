"""Orders that walk whole rows or columns: raster, reverse, column, cross, snake."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgemamba.train.scan_orders.registry import Size, register_order


def steps(size: Size, device: torch.device | None) -> Tensor:
    """(P,) int32 0, 1, 2 ...: the steps of a full order, which are also its positions in row-major order."""
    return torch.arange(math.prod(size), dtype=torch.int32, device=device)


def divided(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of non-negative whole numbers.

    Not by ``%``, which the ONNX exporter refuses of an int64 tensor and a symbolic size.
    """
    quotient = torch.div(x, by, rounding_mode="floor")
    return quotient, x - quotient * by


def columns(size: Size, device: torch.device | None) -> Tensor:
    """(P,) positions of a map in column-major order."""
    height, width = size
    return steps(size, device).view(height, width).transpose(0, 1).reshape(height * width)


def and_reversed(*rows: Tensor) -> Tensor:
    """Stack the rows, then the same rows walked backwards."""
    forward = torch.stack(rows)
    return torch.cat([forward, forward.flip(1)])


@register_order("raster", directions=1, axes=None, summary="row by row")
def _raster(size: Size, device: torch.device | None) -> Tensor:
    return steps(size, device)[None]


@register_order("reverse", directions=1, axes=None, summary="row by row, from the last position to the first")
def _reverse(size: Size, device: torch.device | None) -> Tensor:
    return _raster(size, device).flip(1)


@register_order("column", directions=1, axes=2, summary="column by column")
def _column(size: Size, device: torch.device | None) -> Tensor:
    return columns(size, device)[None]


@register_order("column-reverse", directions=1, axes=2, summary="column by column, from the last position to the first")
def _column_reverse(size: Size, device: torch.device | None) -> Tensor:
    return _column(size, device).flip(1)


@register_order("bidirectional", directions=2, axes=None, summary="raster and reverse (Vim, arXiv:2401.09417)")
def _bidirectional(size: Size, device: torch.device | None) -> Tensor:
    return and_reversed(steps(size, device))


@register_order(
    "cross", directions=4, axes=2, summary="raster, column and both reversed (VMamba's cross-scan, arXiv:2401.10166)"
)
def _cross(size: Size, device: torch.device | None) -> Tensor:
    return and_reversed(steps(size, device), columns(size, device))


@register_order(
    "cross-unidirectional", directions=4, axes=2, summary="four times raster (VMamba's ablation, forward type v051d)"
)
def _cross_unidirectional(size: Size, device: torch.device | None) -> Tensor:
    return steps(size, device).expand(4, -1).clone()


@register_order(
    "cross-bidirectional",
    directions=4,
    axes=2,
    summary="twice raster, twice reverse (VMamba's ablation, forward type v052d)",
)
def _cross_bidirectional(size: Size, device: torch.device | None) -> Tensor:
    row = steps(size, device)
    return and_reversed(row, row)


@register_order(
    "snake",
    directions=4,
    axes=2,
    summary="rows there and back, columns there and back, and both reversed: no jumps (PlainMamba, arXiv:2403.17695)",
)
def _snake(size: Size, device: torch.device | None) -> Tensor:
    height, width = size
    line, along = divided(steps(size, device), width)
    rows = line * width + torch.where(line % 2 == 0, along, width - 1 - along)
    line, along = divided(steps(size, device), height)
    down = torch.where(line % 2 == 0, along, height - 1 - along) * width + line
    return torch.stack([rows, rows.flip(0), down, down.flip(0)]).to(torch.int32)
