"""OpenCV's ``VideoCapture`` for sources: what it states of itself, and its pictures, from a capture that cannot hang its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.sources.guarded_capture import GuardedCapture, InterruptedWaitError

__all__ = ["GuardedVideo", "VideoFacts", "stated"]


@dataclass(frozen=True)
class VideoFacts:
    """What a capture states: frames a second, and how many there are; None where it states nothing that can be true."""

    fps: float | None
    frames: int | None


def stated(cv2: Any, capture: Any) -> VideoFacts:
    """The facts of a capture that is open. Drivers state zero, minus one, NaN or 2^63 for "unknown"."""
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return VideoFacts(float(fps) if 0 < fps < 1e4 else None, int(frames) if 0 < frames < 1e9 else None)


class GuardedVideo(GuardedCapture):
    """A :class:`GuardedCapture` of OpenCV's.

    Args:
        cv2: OpenCV.
        open_capture: gives the ``VideoCapture``; run in the thread.
        name: of the thread.
    """

    def __init__(self, cv2: Any, open_capture: Callable[[], Any], name: str) -> None:
        super().__init__(open_capture, name)
        self._cv2 = cv2

    def facts(self, seconds: float) -> VideoFacts | None:
        """What it states; None where it cannot be opened, or the wait was interrupted.

        Raises:
            TimeoutError: it did not open in time.
        """
        cv2 = self._cv2
        try:
            return self.ask(lambda capture: stated(cv2, capture) if capture.isOpened() else None, seconds)
        except (InterruptedWaitError, cv2.error):
            return None

    def read(self, seconds: float) -> NDArray[np.uint8] | None:
        """The next picture, uint8 (H, W, 3) RGB; None where none came in time, or none will."""
        try:
            good, pixels = self.ask(lambda capture: capture.read(), seconds)
        except (TimeoutError, InterruptedWaitError, self._cv2.error):
            return None
        if not good:
            return None
        rgb: NDArray[np.uint8] = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return rgb
