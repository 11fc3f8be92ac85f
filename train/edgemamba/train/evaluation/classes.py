"""Classes are matched by name: a data set and a model may number them differently."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError

_SHOWN = 5


def matched(names: Sequence[str], known: Sequence[str], what: str, whose: str) -> NDArray[np.int64]:
    """The position of each of ``names`` among ``known``.

    Args:
        names, known: class names; of which ``known`` may hold more.
        what, whose: what has ``names`` and what has ``known``, for the message.

    Raises:
        DataError: some are not known; or one stands twice among ``known``, so that it is not clear which is meant.
    """
    if strange := [name for name in names if name not in known]:
        left = [name for name in known if name not in names]
        hint = f" ({whose} has {_listed(left)} instead)" if left else f" (and all {len(known)} others)"
        raise DataError(f"{what} has {_plural(len(strange))} that {whose} does not know: {_listed(strange)}{hint}")
    if twice := [name for name in names if list(known).count(name) > 1]:
        raise DataError(f"{whose} has more than one class called {_listed(twice)}")
    return np.array([list(known).index(name) for name in names], np.int64)


def same_count(count: int, other: int, what: str, whose: str) -> None:
    """Where there are no names to match, classes are matched by their position, and there must be as many.

    Raises:
        DataError: there are not.
    """
    if count != other:
        raise DataError(f"{what} has {count} classes and {whose}, which names none, has {other}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _plural(count: int) -> str:
    return "a class" if count == 1 else f"{count} classes"
