"""What a scan order is, how one is registered and found, and how it is made for a grid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind

import torch
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError

# A grid's extents, outermost first: plain integers, or torch.SymInt while tracing with dynamic sizes.
Size = Sequence[int]
Builder = Callable[[Size, torch.device | None], Tensor]
ParametricBuilder = Callable[[Size, torch.device | None, int], Tensor]


@dataclass(frozen=True)
class ScanOrder:
    """One order.

    Attributes:
        name: what :func:`scan_order` and the models' ``scan=`` take.
        directions: G, the number of rows of the tensor.
        axes: number of grid axes the order is defined for; None for any.
        summary: one line for tables.
        build: makes the (G, S) int32 tensor.
        multiple: every extent must be a multiple of this (the caller pads its map).
        parts: 1 for a full order, each of whose directions visits every position; else each direction visits one position
            in ``parts``, and all together visit each once.
    """

    name: str
    directions: int
    axes: int | None
    summary: str
    build: Builder
    multiple: int = 1
    parts: int = 1

    def extends_to(self, directions: int, axes: int) -> bool:
        """Whether :func:`scan_order` can give it that many directions over a grid of that many axes."""
        if directions == self.directions:
            return True
        return self.directions == 1 and (directions == 2 or (directions == 4 and axes == 2))


@dataclass(frozen=True)
class OrderPattern:
    """Orders that differ by one number, registered as ``window{k}`` and asked for as ``window7``.

    Attributes:
        name: with ``{k}`` where the number stands.
        example: a number that makes a good picture.
        make: the number -> the order.
    """

    name: str
    example: int
    make: Callable[[int], ScanOrder]

    def match(self, name: str) -> int | None:
        """The number in ``name`` if it is of this pattern."""
        before, after = self.name.split("{k}")
        found = re.fullmatch(f"{re.escape(before)}([1-9][0-9]{{0,3}}){re.escape(after)}", name)
        return int(found[1]) if found else None


_ORDERS: dict[str, ScanOrder] = {}
_PATTERNS: list[OrderPattern] = []


def register_order(name: str, *, directions: int, axes: int | None, summary: str) -> Callable[[Builder], Builder]:
    """Register a builder under ``name`` (decorator)."""

    def register(build: Builder) -> Builder:
        if name in _ORDERS:
            raise ValueError(f"scan order {name!r} is registered twice")
        _ORDERS[name] = ScanOrder(name, directions, axes, summary, build)
        return build

    return register


def register_pattern(
    name: str, *, example: int, axes: int, summary: str, directions: Callable[[int], int], multiple: bool, parts: bool
) -> Callable[[ParametricBuilder], ParametricBuilder]:
    """Register a builder for every number k >= 1 (decorator).

    Args:
        name: with ``{k}`` in it.
        example: a number for :func:`list_orders`, tests and pictures.
        directions: k -> rows.
        multiple: whether extents must be multiples of k.
        parts: whether each direction visits only its share of the positions.
    """

    def register(build: ParametricBuilder) -> ParametricBuilder:
        def make(k: int) -> ScanOrder:
            rows = directions(k)
            return ScanOrder(
                name=name.replace("{k}", str(k)),
                directions=rows,
                axes=axes,
                summary=summary.replace("{k}", str(k)),
                build=bind(_with_number, build, k),
                multiple=k if multiple else 1,
                parts=rows if parts else 1,
            )

        _PATTERNS.append(OrderPattern(name, example, make))
        return build

    return register


def _with_number(build: ParametricBuilder, k: int, size: Size, device: torch.device | None) -> Tensor:
    return build(size, device, k)


def list_orders() -> list[ScanOrder]:
    """All registered orders, by name; of those with a number, an example each (:func:`order_patterns` has the patterns)."""
    orders = [*_ORDERS.values(), *(pattern.make(pattern.example) for pattern in _PATTERNS)]
    return sorted(orders, key=lambda order: order.name)


def order_patterns() -> list[OrderPattern]:
    """The orders that take a number."""
    return list(_PATTERNS)


def get_order(name: str) -> ScanOrder:
    """The order registered as ``name``, e.g. ``"cross"`` or ``"window7"``.

    Raises:
        ScanArgumentError: there is none; the message names the nearest.
    """
    if name in _ORDERS:
        return _ORDERS[name]
    for pattern in _PATTERNS:
        number = pattern.match(name)
        if number is not None:
            return pattern.make(number)
    known = [*_ORDERS, *(pattern.name for pattern in _PATTERNS)]
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    raise ScanArgumentError(f"scan order {name!r} is not known; nearest: {', '.join(near)}") from None


def scan_order(name: str, size: Size, device: torch.device | None = None, directions: int | None = None) -> Tensor:
    """The order ``name`` over a grid.

    Args:
        name: a registered order, see :func:`list_orders`.
        size: the grid's extents, outermost first: ``(height, width)`` for a map, ``(depth, height, width)`` for a volume,
            ``(length,)`` for a sequence. Extents may be symbolic under ``torch.export``.
        device: where the tensor is made.
        directions: rows that the caller's layer has. An order of one direction is extended to two by its reverse, and to
            four, on a map, by the same walk over the transposed map and the reverses of both, as "cross" is to "raster".

    Returns:
        int32 (G, S); S is the number of positions for a full order.

    Raises:
        ScanArgumentError: unknown name, wrong number of axes, an extent below 1 or not a multiple of what the order needs,
            or an order that does not extend to ``directions``.
    """
    order = get_order(name)
    if order.axes is not None and len(size) != order.axes:
        raise ScanArgumentError(f"scan order {name!r} takes {order.axes} extents, not {len(size)}: {tuple(size)}")
    for extent in size:
        if not isinstance(extent, int):
            continue  # symbolic: not known, or not to be asked about
        if extent < 1:
            raise ScanArgumentError(f"scan order {name!r} takes positive extents, not {tuple(size)}")
        if extent % order.multiple:
            raise ScanArgumentError(f"scan order {name!r} takes multiples of {order.multiple}, not {tuple(size)}")
    if directions is not None and not order.extends_to(directions, len(size)):
        raise ScanArgumentError(
            f"scan order {order.name!r} has {order.directions} direction(s), the layer needs {directions}; "
            "an order of one direction extends to two and, on a map, to four"
        )
    rows = order.build(size, device)
    return rows if directions in (None, order.directions) else _extended(order, rows, size, directions == 4)


def _extended(order: ScanOrder, rows: Tensor, size: Size, transpose: bool) -> Tensor:
    """An order of one direction in two, or in four with those of the transposed map."""
    if transpose:
        height, width = size
        # Positions of the transposed map, column * height + row, as positions of the map.
        walk = order.build((width, height), rows.device)
        transposed = (walk % height) * width + torch.div(walk, height, rounding_mode="floor")
        rows = torch.cat([rows, transposed.to(torch.int32)])
    return torch.cat([rows, rows.flip(1)])
