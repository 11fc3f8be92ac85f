"""Checks that the families' configurations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgemamba.runtime.errors import ModelError


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
