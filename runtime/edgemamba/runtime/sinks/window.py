"""A window on the desktop, where OpenCV has one."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source

_ESCAPE = 27
_QUIT = frozenset((_ESCAPE, ord("q"), ord("Q")))
# Screens show no more; drawing every frame of a fast file would slow the stream for nothing.
_MOST_A_SECOND = 60.0
_LARGEST = (1600, 900)


class WindowSink(Sink):
    """Shows annotated frames as they come; ``q``, Escape or closing the window ends the stream.

    Args:
        title: of the window.
    """

    in_callers_thread = True

    def __init__(self, title: str = "edgemamba") -> None:
        self.title = title
        self._cv2: Any = None
        self._shown = 0
        self._last = 0.0

    def open(self, source: Source) -> None:
        cv2 = require("cv2", purpose="showing a window")
        instead = "--out FILE writes, and --web PORT shows the results in a browser instead"
        if not has_windows(cv2):
            raise SinkError(
                "window://: this OpenCV was built without windows (opencv-python-headless); install opencv-python in its "
                f"place, or: {instead}"
            )
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise SinkError(f"window://: there is no display (DISPLAY and WAYLAND_DISPLAY are not set); {instead}")
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise SinkError(f"window:// cannot be opened: {error.err}") from None
        self._cv2 = cv2

    def write(self, result: Result) -> None:
        if self._cv2 is None:
            raise SinkError("window:// is not open")
        now = time.monotonic()
        if now - self._last < 1 / _MOST_A_SECOND:
            return
        self._last = now
        picture = annotate(result.frame.pixels, result.top)
        if not self._shown:
            height, width = picture.shape[:2]
            scale = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
            self._cv2.resizeWindow(self.title, int(width * scale), int(height * scale))
        self._cv2.imshow(self.title, picture[..., ::-1])
        self._shown += 1
        pressed = self._cv2.waitKey(1) & 0xFF
        closed = self._cv2.getWindowProperty(self.title, self._cv2.WND_PROP_VISIBLE) < 1
        self.wants_more = not (pressed in _QUIT or closed)

    def close(self) -> None:
        cv2, self._cv2 = self._cv2, None
        if cv2 is not None:
            try:
                cv2.destroyWindow(self.title)
                cv2.waitKey(1)
            except cv2.error:  # the user has closed it
                pass

    def describe(self) -> str:
        return f"window ({self._shown} frames shown)"


def has_windows(cv2: Any) -> bool:
    """Whether this build of OpenCV can show windows."""
    for line in cv2.getBuildInformation().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "GUI":
            return value.strip().upper() != "NONE"
    return False
