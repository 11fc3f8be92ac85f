"""Annotated video, through OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import NOMINAL_FPS
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.room import bytes_left
from edgemamba.runtime.sources.base import Source

# The wheels of OpenCV carry no H.264 encoder; MPEG-4 Part 2 is in every build and plays nearly everywhere.
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
# Room that must be left on the disk for the frame in work and the container's index, without which nothing can be read: an
# entry takes some 20 bytes a frame, and a frame of MPEG-4 or Motion JPEG never more than its raw pixels.
_INDEX_ENTRY = 64
_RESERVE = 1 << 20
# A live source that stalls is bridged by repeating its last picture, for at most this long.
_LONGEST_BRIDGE = 10.0


class VideoSink(Sink):
    """Writes annotated frames at the source's rate.

    The first frame decides the size; pictures of other sizes are fitted into it between black bars. Of a live source,
    pictures are repeated or left out so that the video keeps the pace of the clock.

    Args:
        path: the file; its suffix decides container and codec (see ``CODECS``). What it holds is replaced by the first
            result, and kept where none comes. An MP4 is finished by :meth:`close`; an
            ``.mkv`` or ``.avi`` can be read nearly up to its last frame even if the process was killed. Before the disk is
            full the stream ends, with room left to finish the file.
        fps: frames a second; by default the source's, or 10 where it states none.
    """

    path: Path

    def __init__(self, path: str | Path, fps: float | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in CODECS:
            raise SinkError(f"{self.path}: videos are written as {', '.join(CODECS)}")
        self.codec = CODECS[self.path.suffix.lower()]
        self._fps = fps
        self._live = False
        self._writer: Any = None
        self._size = (0, 0)
        self._count = 0
        self._made = False

    def open(self, source: Source) -> None:
        self._cv2 = require("cv2", purpose="writing videos")
        self._fps = self._fps or source.fps or NOMINAL_FPS
        self._live = source.live
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            with self.path.open("ab"):  # OpenCV says only that it failed
                pass
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None

    def write(self, result: Result) -> None:
        picture = annotate(result.frame.pixels, result.top)
        if self._writer is None:
            self._start(picture)
        picture = self._fitted(picture)
        for _ in range(self._copies(result.frame.timestamp)):
            self._check_room()
            self._writer.write(self._cv2.cvtColor(picture, self._cv2.COLOR_RGB2BGR))
            self._count += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if self._count and not (self.path.is_file() and self.path.stat().st_size):
                raise SinkError(f"{self.path}: {self.codec} wrote nothing; is the disk full, or the file deleted?")
        if self._made and not self._count:
            self.path.unlink(missing_ok=True)

    def describe(self) -> str:
        return f"{self.path} ({self._count} frames, {self.codec})"

    def _check_room(self) -> None:
        height, width = self._size
        left = bytes_left(self.path)
        if left is not None and left < _RESERVE + 3 * height * width + _INDEX_ENTRY * self._count:
            raise SinkError(
                f"{self.path} cannot be written after {self._count} frames: no space left, but for the end of the file"
            )

    def _start(self, picture: NDArray[np.uint8]) -> None:
        height, width = (side + side % 2 for side in picture.shape[:2])  # 4:2:0 wants even sides
        fourcc = self._cv2.VideoWriter_fourcc(*self.codec)
        self._writer = self._cv2.VideoWriter(str(self.path), fourcc, float(self._fps or NOMINAL_FPS), (width, height))
        if not self._writer.isOpened():
            self._writer = None
            raise SinkError(
                f"{self.path}: this OpenCV cannot encode {self.codec} at {width}x{height}; write .avi, .jsonl or a folder instead"
            )
        self._size = (height, width)

    def _fitted(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture at the video's size, between black bars if its shape differs."""
        height, width = self._size
        if picture.shape[:2] == (height, width):
            return picture
        scale = min(height / picture.shape[0], width / picture.shape[1])
        if scale < 1 or scale >= 2:
            inner = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
            interpolation = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
            picture = self._cv2.resize(picture, inner, interpolation=interpolation)
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return canvas

    def _copies(self, timestamp: float) -> int:
        """How often to write a picture: once, unless the source is live and the clock says otherwise."""
        if not self._live:
            return 1
        fps = float(self._fps or NOMINAL_FPS)
        due = round(timestamp * fps) + 1 - self._count
        return max(0, min(due, int(_LONGEST_BRIDGE * fps)))
