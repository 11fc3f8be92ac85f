"""Video files, through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import NOMINAL_FPS, Frame
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.guarded_video import stated


class VideoSource(Source):
    """The frames of a video file, turned as its rotation tag says.

    A file that ends before the number of frames that its header promises is read as far as it goes; the missing ones are
    counted as skipped.

    Args:
        path: the file.

    Raises:
        SourceError: it cannot be opened as a video.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.files = (path,)
        self._cv2 = require("cv2", purpose="reading videos")
        self._capture = self._open()
        facts = stated(self._cv2, self._capture)
        self.fps, self.length = facts.fps, facts.frames

    def _open(self) -> Any:
        path = self.files[0]
        capture = self._cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise SourceError(f"{path} cannot be opened as a video; it is damaged, cut short, or of an unknown format")
        return capture

    def __iter__(self) -> Iterator[Frame]:
        if self._capture is None:
            self._capture = self._open()
        index = 0
        last = -1.0
        try:
            while True:
                good, pixels = self._capture.read()
                if not good:
                    break
                # Presentation times where the file has them; a clock that stands still is replaced by the frame rate.
                seconds = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
                if seconds <= last or not seconds < 1e9:
                    seconds = index / (self.fps or NOMINAL_FPS) if index == 0 else last + 1 / (self.fps or NOMINAL_FPS)
                last = seconds
                rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
                yield Frame(rgb, index, seconds, self.name)
                index += 1
        finally:
            self.close()
        if index == 0:
            raise SourceError(f"{self.files[0]}: not one frame of the video can be decoded")
        # Containers without an exact count give an estimate, which may be one too high.
        if self.length is not None and index < self.length - 1:
            reason = f"{self.files[0]} ends after {index} of the {self.length} frames that its header promises"
            self.skipped.add(reason, self.length - index)

    def close(self) -> None:
        """Close the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
