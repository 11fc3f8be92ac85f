"""The watchdog: says so when a source gives nothing for a stated time."""

from __future__ import annotations

import logging
import time

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.report import StreamReport

__all__ = ["DEFAULT_STALL_SECONDS", "Watchdog"]

LOGGER = logging.getLogger("edgemamba.runtime")

#: For live sources. Others may rest for hours (a watched folder, a receiver) and are watched only when asked.
DEFAULT_STALL_SECONDS = 10.0


class Watchdog:
    """Measures the time since the last frame.

    Args:
        report: its ``stalls`` are counted here.
        seconds: after this long without a frame the source counts as stalled; 0: never.
        stop: whether a stall ends the stream; else it is said in one line, and so is its end.
    """

    def __init__(self, report: StreamReport, seconds: float, stop: bool) -> None:
        self._report = report
        self._seconds = seconds
        self._stop = stop
        self._last = time.monotonic()
        self._stalled = False

    def start(self) -> None:
        """The source is asked for its first frame now."""
        self._last = time.monotonic()

    def feed(self) -> None:
        """A frame has come. Called by the capture thread."""
        now = time.monotonic()
        silence, self._last = now - self._last, now
        if self._stalled:
            self._stalled = False
            LOGGER.warning("%s: frames again, after %.1f s", self._report.source.name, silence)

    def check(self) -> None:
        """Called now and then while frames are waited for.

        Raises:
            SourceError: the source has stalled, and that is to end the stream.
        """
        if self._stalled or not self._seconds or time.monotonic() - self._last < self._seconds:
            return
        self._stalled = True
        self._report.stalls += 1
        text = f"{self._report.source.name}: no frame for {self._seconds:g} s"
        if self._stop:
            raise SourceError(f"{text}: the source has stalled")
        LOGGER.warning("%s; still waiting", text)
