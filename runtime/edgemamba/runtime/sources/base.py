"""The protocol of all sources, and how they account for what they could not read."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemamba.runtime.frames import Frame

LOGGER = logging.getLogger("edgemamba.runtime")

# Reasons kept in full; a stream that runs for days goes on counting without growing.
_REASONS_KEPT = 20


class SkipLog:
    """What was left out, and why: a count, and the first reasons. Written by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.reasons: list[str] = []

    def add(self, reason: str, frames: int = 1) -> None:
        """Count ``frames`` pictures as skipped, and say why on the log."""
        with self._lock:
            self.count += frames
            if len(self.reasons) < _REASONS_KEPT:
                self.reasons.append(reason)
        LOGGER.warning("skipped: %s", reason)


class Source(ABC):
    """Where frames come from.

    Iterating gives the frames in order and releases what was opened at the end; a source of files can be iterated again. As a
    context manager, or with :meth:`close`, it is released at once. A source is used by one thread at a time.

    Attributes:
        name: what a person would call it.
        live: frames come at their own pace and are lost if nobody takes them (a camera).
        length: how many frames there will be, where that is known beforehand.
        fps: frames a second, where the source states it.
        files: the files that are read, so that no output overwrites one of them.
        skipped: what could not be read.
    """

    live: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.length: int | None = None
        self.fps: float | None = None
        self.files: tuple[Path, ...] = ()
        self.skipped = SkipLog()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order.

        Raises:
            SourceError: nothing could be read, or a live source stopped.
        """

    def interrupt(self) -> None:  # noqa: B027 - optional: only sources that wait have something to interrupt
        """End the iteration soon, whatever it waits for: a frame, a connection, a file. Any thread may ask."""

    def close(self) -> None:  # noqa: B027 - optional: a source that holds nothing has nothing to release
        """Release devices and files."""

    def describe(self) -> dict[str, Any]:
        """JSON-able facts about the source."""
        return {"name": self.name, "live": self.live, "length": self.length, "fps": self.fps}

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
