"""Annotated pictures in a folder."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source


class ImageFolderSink(Sink):
    """Writes each annotated frame as ``000042_name.png``: the frame's index, and its file's name where it comes from one.

    Args:
        path: the folder; made if it does not exist. Pictures of the same names are overwritten, others are left alone.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._count = 0

    def open(self, source: Source) -> None:
        require("cv2", purpose="writing pictures")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be made a folder: {error.strerror}") from None

    def write(self, result: Result) -> None:
        cv2 = require("cv2", purpose="writing pictures")
        name = re.sub(r"[^\w.-]+", "_", Path(result.frame.source).stem)[:80]
        path = self.path / f"{result.frame.index:06d}_{name}.png"
        good, encoded = cv2.imencode(".png", annotate(result.frame.pixels, result.top)[..., ::-1])
        if not good:
            raise SinkError(f"{path} cannot be encoded")
        try:
            path.write_bytes(encoded.tobytes())
        except OSError as error:
            with suppress(OSError):  # half a picture is none
                path.unlink(missing_ok=True)
            raise SinkError(f"{path} cannot be written: {error.strerror}") from None
        self._count += 1

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"{self.path} ({self._count} pictures)"
