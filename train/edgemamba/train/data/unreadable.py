"""How many pictures may be unreadable before it is no accident."""

from __future__ import annotations

from collections.abc import Mapping

from edgemamba.runtime.errors import DataError

#: More unreadable pictures than this share of a data set: the run stops.
UNREADABLE_LIMIT = 0.01


def check_unreadable(
    unreadable: Mapping[str, str], total: int, limit: float = UNREADABLE_LIMIT, remedy: str = ""
) -> None:
    """Refuse to go on with too little.

    Args:
        unreadable: names of pictures, with the reason.
        total: pictures of the data set.
        limit: the share of them that may be unreadable.
        remedy: what the message ends with.

    Raises:
        DataError: they are more.
    """
    if len(unreadable) <= limit * total:
        return
    name, reason = next(iter(unreadable.items()))
    reason = reason if name in reason else f"{name}: {reason}"
    raise DataError(
        f"{len(unreadable)} of {total} pictures cannot be read, more than {limit * 100:.3g}%; the first: {reason}{remedy}"
    )
