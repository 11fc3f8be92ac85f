"""Cameras that the operating system knows by number or device path (V4L2 on Linux), through OpenCV."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import Source

# Reads that may fail in a row before the camera counts as gone, and the pause after each.
_FAILURES = 20
_PAUSE = 0.05


class CameraSource(Source):
    """A camera.

    Args:
        device: its number, or its device path such as ``/dev/video0``.

    Raises:
        SourceError: it cannot be opened. While iterating: it gives no frames, or stopped giving them.
    """

    live = True

    def __init__(self, device: int | str) -> None:
        super().__init__(f"camera {device}")
        self._cv2 = require("cv2", purpose="reading cameras")
        backend = self._cv2.CAP_V4L2 if sys.platform.startswith("linux") else self._cv2.CAP_ANY
        self._capture = self._cv2.VideoCapture(device, backend)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{self.name} cannot be opened; is it connected, free, and readable for this user?")
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps < 1e4 else None

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        failures = 0
        start = 0.0
        try:
            while True:
                good, pixels = self._capture.read()
                now = time.monotonic()
                if not good:
                    failures += 1
                    if failures >= _FAILURES:
                        when = f"stopped giving frames after {index}" if index else "opened, but gives no frames"
                        raise SourceError(f"{self.name} {when}")
                    time.sleep(_PAUSE)
                    continue
                failures = 0
                start = start or now
                rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
                yield Frame(rgb, index, now - start, self.name)
                index += 1
        finally:
            self.close()

    def close(self) -> None:
        """Free the camera."""
        self._capture.release()
