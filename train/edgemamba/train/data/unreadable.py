"""How many pictures may be unreadable before it is no accident."""

from __future__ import annotations

from collections.abc import Mapping

from edgemamba.runtime.errors import DataError

#: More unreadable pictures than this share of a data set: the run stops.
UNREADABLE_LIMIT = 0.01


def check_unreadable(unreadable: Mapping[str, str], total: int) -> None:
    """Refuse to go on with too little.

    Args:
        unreadable: names of pictures, with the reason.
        total: pictures of the data set.

    Raises:
        DataError: they are more than :data:`UNREADABLE_LIMIT`.
    """
    if len(unreadable) <= UNREADABLE_LIMIT * total:
        return
    name, reason = next(iter(unreadable.items()))
    reason = reason if name in reason else f"{name}: {reason}"
    raise DataError(
        f"{len(unreadable)} of {total} pictures cannot be read, more than {UNREADABLE_LIMIT:.0%}; the first: {reason}"
    )
