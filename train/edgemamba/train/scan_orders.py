"""Scan orders as data: in which order a direction visits the positions of a map.

An order is an int32 tensor (G, S): direction ``g`` visits position ``order[g, s]`` at step ``s``, where positions are the
row-major indices of a map ``(height, width)`` (or of any grid, the last axis innermost). The operator
(:func:`edgemamba.train.selective_scan.selective_scan`) takes it as an input, so a backbone changes its scan by asking for
another name here.

Every order is arithmetic on :func:`torch.arange`, so that one code path serves plain sizes, whose orders are constants of an
exported graph, and the symbolic sizes of ``torch.export``, whose orders become a few integer nodes. Nothing is cached: an
order computed while tracing is a tracer's tensor, and must not outlive the trace.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError

# A grid's extents, outermost first: plain integers, or torch.SymInt while tracing with dynamic sizes.
Size = Sequence[int]
Builder = Callable[[Size, torch.device | None], Tensor]


@dataclass(frozen=True)
class ScanOrder:
    """One registered order.

    Attributes:
        name: what :func:`scan_order` and the models' ``scan=`` take.
        directions: G, the number of rows of the tensor.
        axes: number of grid axes the order is defined for; None for any.
        summary: one line for tables.
        build: makes the (G, S) int32 tensor.
    """

    name: str
    directions: int
    axes: int | None
    summary: str
    build: Builder


_ORDERS: dict[str, ScanOrder] = {}


def register_order(name: str, *, directions: int, axes: int | None, summary: str) -> Callable[[Builder], Builder]:
    """Register a builder under ``name`` (decorator)."""

    def register(build: Builder) -> Builder:
        if name in _ORDERS:
            raise ValueError(f"scan order {name!r} is registered twice")
        _ORDERS[name] = ScanOrder(name, directions, axes, summary, build)
        return build

    return register


def list_orders() -> list[ScanOrder]:
    """All registered orders, by name."""
    return [_ORDERS[name] for name in sorted(_ORDERS)]


def get_order(name: str) -> ScanOrder:
    """The order registered as ``name``.

    Raises:
        ScanArgumentError: there is none; the message names the nearest.
    """
    try:
        return _ORDERS[name]
    except KeyError:
        near = difflib.get_close_matches(name, _ORDERS, n=3) or sorted(_ORDERS)
        raise ScanArgumentError(f"scan order {name!r} is not known; nearest: {', '.join(near)}") from None


def scan_order(name: str, size: Size, device: torch.device | None = None, directions: int | None = None) -> Tensor:
    """The order ``name`` over a grid.

    Args:
        name: a registered order, see :func:`list_orders`.
        size: the grid's extents, outermost first: ``(height, width)`` for a map, ``(length,)`` for a sequence. Extents may
            be symbolic under ``torch.export``.
        device: where the tensor is made.
        directions: rows that the caller's layer has. An order of one direction is extended to two by its reverse, and to
            four, on a map, by the same walk over the transposed map and the reverses of both, as "cross" is to "raster".

    Returns:
        int32 (G, S); S is the number of positions for a full order.

    Raises:
        ScanArgumentError: unknown name, wrong number of axes, an extent below 1, or an order that does not extend to
            ``directions``.
    """
    order = get_order(name)
    if order.axes is not None and len(size) != order.axes:
        raise ScanArgumentError(f"scan order {name!r} takes {order.axes} extents, not {len(size)}: {tuple(size)}")
    for extent in size:
        if isinstance(extent, int) and extent < 1:
            raise ScanArgumentError(f"scan order {name!r} takes positive extents, not {tuple(size)}")
    rows = order.build(size, device)
    return rows if directions in (None, order.directions) else _extended(order, rows, size, directions)


def _extended(order: ScanOrder, rows: Tensor, size: Size, directions: int | None) -> Tensor:
    """An order of one direction in two or four."""
    if order.directions == 1 and directions == 2:
        return torch.cat([rows, rows.flip(1)])
    if order.directions == 1 and directions == 4 and len(size) == 2:
        height, width = size
        # Positions of the transposed map, column * height + row, as positions of the map.
        walk = order.build((width, height), rows.device)
        transposed = (walk % height) * width + torch.div(walk, height, rounding_mode="floor")
        both = torch.cat([rows, transposed.to(torch.int32)])
        return torch.cat([both, both.flip(1)])
    raise ScanArgumentError(
        f"scan order {order.name!r} has {order.directions} direction(s), the layer needs {directions}; "
        "an order of one direction extends to two and, on a map, to four"
    )


def _raster_row(size: Size, device: torch.device | None) -> Tensor:
    """(P,) positions in row-major order."""
    return torch.arange(math.prod(size), dtype=torch.int32, device=device)


def _column_row(size: Size, device: torch.device | None) -> Tensor:
    """(P,) positions of a map in column-major order."""
    height, width = size
    return _raster_row(size, device).view(height, width).transpose(0, 1).reshape(height * width)


def _and_reversed(*rows: Tensor) -> Tensor:
    """Stack the rows, then the same rows walked backwards."""
    forward = torch.stack(rows)
    return torch.cat([forward, forward.flip(1)])


@register_order("raster", directions=1, axes=None, summary="row by row")
def _raster(size: Size, device: torch.device | None) -> Tensor:
    return _raster_row(size, device)[None]


@register_order("reverse", directions=1, axes=None, summary="row by row, from the last position to the first")
def _reverse(size: Size, device: torch.device | None) -> Tensor:
    return _raster(size, device).flip(1)


@register_order("column", directions=1, axes=2, summary="column by column")
def _column(size: Size, device: torch.device | None) -> Tensor:
    return _column_row(size, device)[None]


@register_order("column-reverse", directions=1, axes=2, summary="column by column, from the last position to the first")
def _column_reverse(size: Size, device: torch.device | None) -> Tensor:
    return _column(size, device).flip(1)


@register_order("bidirectional", directions=2, axes=None, summary="raster and reverse (Vim, arXiv:2401.09417)")
def _bidirectional(size: Size, device: torch.device | None) -> Tensor:
    return _and_reversed(_raster_row(size, device))


@register_order(
    "cross", directions=4, axes=2, summary="raster, column and both reversed (VMamba's cross-scan, arXiv:2401.10166)"
)
def _cross(size: Size, device: torch.device | None) -> Tensor:
    return _and_reversed(_raster_row(size, device), _column_row(size, device))
