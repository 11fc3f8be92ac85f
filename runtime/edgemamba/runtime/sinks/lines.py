"""What the sinks of text have in common: one line a result, on disk as soon as it is known."""

from __future__ import annotations

import os
import stat
import sys
from abc import abstractmethod
from contextlib import suppress
from io import FileIO
from pathlib import Path

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source


class LineSink(Sink):
    """Writes one line a result, each handed to the system at once.

    A line is written whole or not at all: what a full disk took of one is cut off again, so that the file stays readable.

    Args:
        path: the file; ``-`` is standard output. What it holds is replaced by the first result, and kept where none comes.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stdout = str(path) == "-"
        self._file: FileIO | None = None
        self._lines = 0
        self._size = 0  # of the whole lines in a plain file
        self._plain = False
        self._made = False

    @abstractmethod
    def line(self, result: Result) -> str:
        """The result as a line, its end included."""

    def heading(self, result: Result) -> str:
        """What stands before the first result's line."""
        return ""

    def open(self, source: Source) -> None:
        if self._stdout:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            self._file = FileIO(self.path, "ab")
            self._plain = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)  # pipes and devices cannot be cut
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None

    def write(self, result: Result) -> None:
        if self._file is None and not self._stdout:
            raise SinkError(f"{self.path} is not open")
        text = self.line(result)
        try:
            if not self._lines:
                text = self.heading(result) + text
                if self._file is not None and self._plain:
                    self._file.truncate(0)
            self._put(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._file is not None and self._plain:
                with suppress(OSError):
                    self._file.truncate(self._size)
            raise SinkError(f"{self.path} cannot be written after {self._lines} lines: {error.strerror}") from None
        self._lines += 1

    def close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except OSError as error:
            raise SinkError(f"{self.path} cannot be finished: {error.strerror}") from None
        if self._made and not self._lines:
            self.path.unlink(missing_ok=True)

    def describe(self) -> str:
        return f"{self.path} ({self._lines} lines)"

    def _put(self, text: str) -> None:
        if self._file is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        data = text.encode("utf-8")
        left = memoryview(data)
        while left:  # a raw file may take less than it is given
            left = left[self._file.write(left) or 0 :]
        self._size += len(data)
