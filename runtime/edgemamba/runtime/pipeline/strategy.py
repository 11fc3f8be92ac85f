"""What a full queue does: the names are those of roboflow inference's buffer filling strategies."""

from __future__ import annotations

from enum import Enum

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources.base import Source

__all__ = ["Strategy", "choose_strategy"]


class Strategy(str, Enum):
    """What happens to a frame that comes while all places before the engine are taken.

    Attributes:
        WAIT: the source waits, nothing is dropped by us. What a camera's driver or a server drops meanwhile is not counted.
        DROP_OLDEST: the frame that has waited longest gives way: the lowest latency. The default of live sources.
        DROP_LATEST: the new frame is dropped: what waits already is kept.
    """

    WAIT = "WAIT"
    DROP_OLDEST = "DROP_OLDEST"
    DROP_LATEST = "DROP_LATEST"


def choose_strategy(wanted: Strategy | str | None, source: Source) -> Strategy:
    """The strategy for a source; ``None``: DROP_OLDEST where it is live, else WAIT.

    Raises:
        SourceError: the name is unknown, or drops are asked for where none may happen: only live sources lose frames.
    """
    if wanted is None:
        return Strategy.DROP_OLDEST if source.live else Strategy.WAIT
    try:
        strategy = Strategy(wanted.upper())
    except ValueError:
        raise SourceError(f"strategy {wanted!r} is unknown; choose one of: {', '.join(Strategy)}") from None
    if strategy is not Strategy.WAIT and not source.live:
        raise SourceError(
            f"strategy {strategy.value} drops frames, and {source.name} is no live source: its frames are never dropped; "
            "leave the strategy out, or use WAIT"
        )
    return strategy
