"""Checks that the families' configurations share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgemamba.runtime.errors import ModelError
from edgemamba.train.scan_orders import get_order


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both, or (height, width)."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(f"{value!r} is not a size: give one positive number, or (height, width)")
    return sides[0], sides[1]


def check_options(config: Any) -> None:
    """Refuse what no family can mean: a choice that is not one of its Literal's, a negative count, a rate outside 0..1.

    Args:
        config: a dataclass instance.

    Raises:
        ModelError: names the option, its value and what it may be.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ModelError(f"{name} is {value!r}; one of {', '.join(map(repr, get_args(kind)))} is needed")
        if kind is int and (not isinstance(value, int) or value < (0 if name == "num_classes" else 1)):
            raise ModelError(f"{name} is {value!r}; a positive whole number is needed")
        if name.endswith("_rate") and not 0 <= value < 1:
            raise ModelError(f"{name} is {value!r}; a number from 0 to below 1 is needed")


def check_scan(scan: str, directions: Iterable[int]) -> None:
    """Refuse a scan order that layers over maps cannot take.

    Args:
        scan: its name.
        directions: of the layers, as many as there are different ones.

    Raises:
        ModelError: it is of volumes, or does not have, nor extend to, as many directions.
        ScanArgumentError: there is none of that name.
    """
    order = get_order(scan)
    if order.axes not in (None, 2):
        raise ModelError(f"scan {scan!r} is an order of grids of {order.axes} axes; a map has 2")
    for count in directions:
        if not order.extends_to(count, axes=2):
            raise ModelError(
                f"scan {scan!r} has {order.directions} direction(s), this model's layers need {count}; "
                "orders of one direction extend to two and four"
            )
