"""JSON Lines: one object a frame, on disk as soon as it is known."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import TextIO

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source


class JsonlSink(Sink):
    """Writes :meth:`~edgemamba.runtime.results.Result.to_json`, a line a result, each handed to the system at once.

    Args:
        path: the file; ``-`` is standard output. What it holds is replaced by the first result, and kept where none comes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self._lines = 0
        self._made = False

    def open(self, source: Source) -> None:
        if str(self.path) == "-":
            self._file = sys.stdout
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None

    def write(self, result: Result) -> None:
        if self._file is None:
            raise SinkError(f"{self.path} is not open")
        try:
            if not self._lines and self._holds_older_lines():
                self._file.truncate(0)
            self._file.write(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written after {self._lines} lines: {error.strerror}") from None
        self._lines += 1

    def close(self) -> None:
        file, self._file = self._file, None
        if file is None or file is sys.stdout:
            return
        try:
            file.close()
        except OSError as error:
            raise SinkError(f"{self.path} cannot be finished: {error.strerror}") from None
        if self._made and not self._lines:
            self.path.unlink(missing_ok=True)

    def _holds_older_lines(self) -> bool:
        """Only plain files can hold any; pipes and devices cannot be cut to length."""
        if self._file is None or self._file is sys.stdout:
            return False
        return stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def describe(self) -> str:
        return f"{self.path} ({self._lines} lines)"
