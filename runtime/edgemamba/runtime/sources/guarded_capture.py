"""An OpenCV capture that cannot hang its caller.

Drivers and network stacks may block in ``open`` and ``read`` for longer than any timeout that they are given (a V4L2 read waits
ten seconds, a name server half a minute, a broken GStreamer element for ever). The capture therefore lives in a thread of its
own, which is asked for one thing at a time; a caller that has waited long enough leaves it behind.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

__all__ = ["GuardedCapture", "InterruptedWaitError"]

T = TypeVar("T")
_Task = Callable[[Any], Any]

# How often a waiting caller looks whether it was interrupted; an answer wakes it at once.
_TICK = 0.1
# A device is free for the next one only when it is released.
_RELEASE_SECONDS = 2.0


class InterruptedWaitError(Exception):
    """The wait was ended by :meth:`GuardedCapture.interrupt`."""


class GuardedCapture:
    """A capture in a daemon thread.

    Args:
        open_capture: gives an object with OpenCV's ``VideoCapture`` interface; run in the thread.
        name: of the thread.
    """

    def __init__(self, open_capture: Callable[[], Any], name: str) -> None:
        self._asks: SimpleQueue[_Task | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self._interrupted = threading.Event()
        self._lost = False
        self._thread = threading.Thread(
            target=_serve, args=(open_capture, self._asks, self._answers), name=name, daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._asks.put, None)  # one that is forgotten ends too

    def ask(self, task: Callable[[Any], T], seconds: float) -> T:
        """Run ``task(capture)`` in the thread. The first one waits for the opening too.

        Raises:
            TimeoutError: no answer in time; the capture is of no more use.
            InterruptedWaitError: interrupted meanwhile; likewise.
            Exception: whatever opening or the task raised.
        """
        if self._lost:
            raise TimeoutError
        self._asks.put(task)
        end = time.monotonic() + seconds
        while not self._interrupted.is_set():
            left = end - time.monotonic()
            if left <= 0:
                self._leave()
                raise TimeoutError
            try:
                good, value = self._answers.get(timeout=min(left, _TICK))
            except Empty:
                continue
            if good:
                result: T = value
                return result
            raise value
        self._leave()
        raise InterruptedWaitError

    def interrupt(self) -> None:
        """End the wait that is going on, and every later one. Any thread may ask."""
        self._interrupted.set()

    def release(self) -> None:
        """Release the capture, and wait a little until it is. Releasing twice is harmless."""
        self._asks.put(None)
        if not self._lost:
            self._thread.join(_RELEASE_SECONDS)
        self._lost = True

    def _leave(self) -> None:
        """The thread releases the capture whenever it comes back."""
        self._lost = True
        self._asks.put(None)


def _serve(
    open_capture: Callable[[], Any], asks: SimpleQueue[_Task | None], answers: SimpleQueue[tuple[bool, Any]]
) -> None:
    """The thread. It holds no reference to its owner."""
    try:
        capture = open_capture()
    except BaseException as error:
        while (task := asks.get()) is not None:
            answers.put((False, error))
        return
    try:
        while (task := asks.get()) is not None:
            try:
                answers.put((True, task(capture)))
            except Exception as error:
                answers.put((False, error))
    finally:
        capture.release()
