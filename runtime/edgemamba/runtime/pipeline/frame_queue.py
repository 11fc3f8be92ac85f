"""The bounded queue between capture and engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.frames import Frame
from edgemamba.runtime.pipeline.strategy import Strategy

__all__ = ["FrameQueue", "Waiting"]

# How often a waiting consumer looks up: for Ctrl-C (on every platform), for a stop asked for by a signal handler, which must
# not touch locks, and for the watchdog.
_TICK = 0.1


@dataclass(frozen=True)
class Waiting:
    """A frame on its way to the engine.

    Attributes:
        frame: the frame.
        arrived: ``time.perf_counter()`` when the source gave it.
        pixels: the engine's input (1, H, W, C) for it; None until it is preprocessed.
        seconds: what its preprocessing took.
    """

    frame: Frame
    arrived: float
    pixels: NDArray[np.generic] | None = None
    seconds: float = 0.0


class FrameQueue:
    """One thread puts, another takes.

    Args:
        room: how many frames may wait.
        strategy: what happens to a frame that finds no room.
        on_drop: called for every dropped frame, by the thread that puts.
    """

    def __init__(self, room: int, strategy: Strategy, on_drop: Callable[[], None]) -> None:
        self._room = room
        self._strategy = strategy
        self._on_drop = on_drop
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False

    def put(self, item: Waiting) -> None:
        """Queue a frame as the strategy says; after :meth:`close` it is forgotten."""
        with self._changed:
            if self._strategy is Strategy.WAIT:
                while len(self._waiting) >= self._room and not self._closed:
                    self._changed.wait()
            elif len(self._waiting) >= self._room:
                self._on_drop()
                if self._strategy is Strategy.DROP_LATEST:
                    return
                self._waiting.popleft()
            if not self._closed:
                self._waiting.append(item)
                self._changed.notify_all()

    def take(self, enough: int, patience: float, on_wait: Callable[[], bool]) -> list[Waiting]:
        """The next frames in order, up to ``enough``; none at the end.

        Args:
            enough: how many are waited for.
            patience: seconds after the first one's arrival when fewer will do. At the end, fewer will do at once.
            on_wait: called at least ten times a second while there are too few; False gives up, with nothing. It may raise.
        """
        with self._changed:
            while len(self._waiting) < enough and not self._ended:
                left = _TICK
                if self._waiting:
                    left = min(left, self._waiting[0].arrived + patience - time.perf_counter())
                    if left <= 0:
                        break
                self._changed.wait(left)
                if not on_wait():
                    return []
            items = [self._waiting.popleft() for _ in range(min(enough, len(self._waiting)))]
            self._changed.notify_all()
        return items

    def holds(self, item: Waiting) -> bool:
        """Whether a frame still waits."""
        with self._changed:
            return any(waiting is item for waiting in self._waiting)

    def end(self) -> None:
        """No more frames will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what waits, and let go of a thread that waits for room."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
