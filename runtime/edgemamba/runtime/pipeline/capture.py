"""Reading the source, in a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from edgemamba.runtime.pipeline.frame_queue import FrameQueue, Waiting
from edgemamba.runtime.pipeline.strategy import Strategy
from edgemamba.runtime.pipeline.watchdog import Watchdog
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.sources.base import Source

__all__ = ["Capture"]

LOGGER = logging.getLogger("edgemamba.runtime")
# How long a stopping stream waits for a source that hangs inside a driver before it leaves it behind.
_PATIENCE = 5.0
# A frame that waits is only preprocessed where that takes at most this share of the time between frames: the rest is for
# the source, which must be read in time or it gives frames that are old.
_SPARE_SHARE = 0.25


class Capture:
    """Frames from the source into a queue.

    Where nothing is dropped, each frame is preprocessed here, beside the engine. Where frames are dropped and one may wait, that
    one is, while the engine is busy with another; so what the engine takes next is ready, and not later by that time. Where
    preprocessing is too slow for that, and where more may wait, the thread that takes a frame preprocesses it.

    Args:
        source: closed at the end.
        prepare: preprocesses a frame; None for one that cannot be used.
        report: counts and times.
        watchdog: watches for stalls.
        strategy: of the full queue.
        room: how many frames may wait.
        max_frames: end after so many frames.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Waiting], Waiting | None],
        report: StreamReport,
        watchdog: Watchdog,
        strategy: Strategy,
        room: int,
        max_frames: int | None,
    ) -> None:
        self._source = source
        self._prepare = prepare
        self._report = report
        self._watchdog = watchdog
        self._ahead = strategy is Strategy.WAIT and not source.live
        self._spare = strategy is Strategy.DROP_OLDEST and room == 1
        self._preparing = threading.Lock()
        # The last frame that was preprocessed while it waited, before and after (None: it cannot be used).
        self._ready: tuple[Waiting, Waiting | None] | None = None
        self._preparation = 0.0
        self._max_frames = max_frames
        self._queue = FrameQueue(room, strategy, self._count_drop)
        self._stopping = False
        self._error: BaseException | None = None
        # A daemon: a driver that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="edgemamba-capture", daemon=True)

    def start(self) -> None:
        self._watchdog.start()
        self._thread.start()

    def ask_to_stop(self) -> None:
        """End soon: a flag and nothing else, so that a signal handler may call it."""
        self._stopping = True

    def take(self, enough: int, patience: float) -> list[Waiting]:
        """The next frames, preprocessed; see :meth:`FrameQueue.take`. Empty at the end.

        Raises:
            SourceError: the source failed, after all frames read before; or it stalled, and that is to end the stream.
        """
        while not self._stopping:
            items = self._queue.take(enough, patience, self._go_on)
            if not items:
                break
            prepared = [self._prepared(item) for item in items]
            if taken := [item for item in prepared if item is not None]:
                return taken
        if not self._stopping and self._error is not None:
            raise self._error
        return []

    def stop(self) -> None:
        """End the thread and close the source; one that hangs in its driver is left behind, and said."""
        self._stopping = True
        self._queue.close()
        if self._thread.ident is None:
            self._source.close()
            return
        self._source.interrupt()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            LOGGER.warning("%s does not answer; it is left behind", self._source.name)

    def _go_on(self) -> bool:
        self._watchdog.check()
        return not self._stopping

    def _prepared(self, item: Waiting) -> Waiting | None:
        """A frame as it was preprocessed while it waited, or else now."""
        if item.pixels is not None:
            return item
        if self._spare:
            with self._preparing:  # for the rest of its preprocessing, where that has begun
                if self._ready is not None and self._ready[0] is item:
                    return self._ready[1]
        return self._prepare(item)

    def _prepare_waiting(self, item: Waiting, interval: float) -> None:
        """Preprocess a frame that waits, unless that would make the next one late."""
        if self._preparation > interval * _SPARE_SHARE:
            return
        with self._preparing:
            if self._queue.holds(item):
                ready = self._prepare(item)
                self._ready = item, ready
                self._preparation = 0.0 if ready is None else ready.seconds

    def _count_drop(self) -> None:
        self._report.dropped += 1

    def _run(self) -> None:
        try:
            with self._source:
                frames = iter(self._source)
                count, before = 0, -math.inf
                while not self._stopping and count != self._max_frames:
                    start = time.perf_counter()
                    frame = next(frames, None)
                    if frame is None:
                        break
                    arrived = time.perf_counter()
                    self._watchdog.feed()
                    self._report.stages["source"].add(arrived - start)
                    count += 1
                    item: Waiting | None = Waiting(frame, arrived)
                    if self._ahead and item is not None:
                        item = self._prepare(item)
                    if item is not None:
                        self._queue.put(item)
                        if self._spare:
                            self._prepare_waiting(item, arrived - before)
                    before = arrived
        except BaseException as error:
            self._error = error
        finally:
            self._queue.end()
