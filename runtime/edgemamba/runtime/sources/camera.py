"""Cameras that the operating system knows by number or device path (V4L2 on Linux), through OpenCV."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.guarded_video import GuardedVideo
from edgemamba.runtime.uris import Uri, number

__all__ = ["CameraSource", "CaptureSource"]

#: Seconds without a frame after which a camera counts as gone, at the start and later; ``?timeout=`` sets another.
SILENCE_SECONDS = 5.0
#: Seconds in which a camera or pipeline must open.
OPEN_SECONDS = 15.0
# After a read that failed at once.
_PAUSE = 0.05


class CaptureSource(Source):
    """A live source behind one OpenCV capture: opened now, read until it stops giving frames.

    Args:
        name: for people.
        open_capture: gives the capture; run in a thread of its own.
        silence: seconds without a frame after which it counts as gone.

    Raises:
        SourceError: it cannot be opened, or not within 15 seconds. While iterating: it gives no frame for ``silence`` seconds,
            whether its driver says so or hangs.
    """

    live = True
    remedy = "is it connected, free, and readable for this user?"

    def __init__(self, name: str, open_capture: Callable[[], Any], silence: float = SILENCE_SECONDS) -> None:
        super().__init__(name)
        self._silence = silence
        self._closed = False
        self._capture = GuardedVideo(require("cv2", purpose="reading cameras"), open_capture, f"edgemamba-{name}"[:60])
        try:
            facts = self._capture.facts(OPEN_SECONDS)
        except TimeoutError:
            raise SourceError(f"{name} does not open within {OPEN_SECONDS:g} s; {self.remedy}") from None
        if facts is None:
            self.close()
            raise SourceError(f"{name} cannot be opened; {self.remedy}")
        self.fps, self.length = facts.fps, facts.frames
        self.live = self.length is None  # else a recording, for instance in a GStreamer pipeline

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        start = 0.0
        last = time.monotonic()
        try:
            while not self._closed:
                pixels = self._capture.read(max(_PAUSE, last + self._silence - time.monotonic()))
                now = time.monotonic()
                if pixels is None:
                    if self._closed or (index and not self.live):
                        return
                    if now - last >= self._silence:
                        when = f"stopped giving frames after {index}" if index else "opened, but gives no frames"
                        raise SourceError(f"{self.name} {when}: none for {self._silence:g} s")
                    time.sleep(_PAUSE)
                    continue
                last = now
                start = start or now
                yield Frame(pixels, index, now - start, self.name)
                index += 1
        finally:
            self.close()

    def interrupt(self) -> None:
        """End the iteration soon."""
        self._closed = True
        self._capture.interrupt()

    def close(self) -> None:
        """Free the camera."""
        self._closed = True
        self._capture.release()


class CameraSource(CaptureSource):
    """A camera of this machine.

    Args:
        uri: of scheme ``v4l2``: its number or device path. Options: ``width``, ``height``, ``fps`` and ``fourcc`` ask for a
            mode, which the camera may answer with the nearest one it has; ``timeout`` in seconds (5).
    """

    def __init__(self, uri: Uri) -> None:
        uri.allow(("fourcc", "fps", "height", "timeout", "width"), SourceError)
        cv2 = require("cv2", purpose="reading cameras")
        device: int | str = int(uri.location) if uri.location.isdecimal() else uri.location
        if isinstance(device, str) and not device.startswith("/"):
            raise SourceError(f"{uri.shown}: give a camera's number or device path, as v4l2://0 or v4l2:///dev/video0")
        backend = cv2.CAP_V4L2 if sys.platform.startswith("linux") else cv2.CAP_ANY
        fourcc = uri.options.get("fourcc", "")
        if fourcc and len(fourcc) != 4:
            raise SourceError(f"{uri.shown}: fourcc={fourcc} has not four characters, as MJPG has")
        modes = {
            cv2.CAP_PROP_FRAME_WIDTH: number(uri, "width", 0, SourceError),
            cv2.CAP_PROP_FRAME_HEIGHT: number(uri, "height", 0, SourceError),
            cv2.CAP_PROP_FPS: number(uri, "fps", 0, SourceError),
        }

        def open_capture() -> Any:
            capture = cv2.VideoCapture(device, backend)
            if fourcc:  # first: it decides which sizes there are
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*fourcc))
            for mode, value in modes.items():
                if value:
                    capture.set(mode, value)
            return capture

        silence = number(uri, "timeout", SILENCE_SECONDS, SourceError, 0.1)
        super().__init__(f"camera {uri.location}", open_capture, silence)
