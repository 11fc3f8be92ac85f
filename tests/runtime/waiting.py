"""What tests of threads and processes wait with: conditions, with a limit that only a failure reaches, and no measure of time."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources import Source

_PATIENCE = 30.0


def wait_for(what: Callable[[], Any], patience: float = _PATIENCE, tell: Callable[[], object] = lambda: "") -> Any:
    """Poll until ``what`` is true, and return what it gave; ``tell`` says more where it never is."""
    deadline = time.monotonic() + patience
    while not (value := what()):
        assert time.monotonic() < deadline, f"timed out {tell()}"
        time.sleep(0.01)
    return value


def wait_for_lines(process: subprocess.Popen[str], path: Path, more_than: int = 10) -> None:
    """Until a process has written so many lines to a file; fails with what it said on stderr if it ends before."""

    def written() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return path.exists() and path.read_text().count("\n") > more_than

    wait_for(written, 60)


class Reader:
    """Takes a source's frames in a thread, as a pipeline does; with ``keep`` off it only counts them."""

    def __init__(self, source: Source) -> None:
        self.source: Any = source
        self.frames: list[Frame] = []
        self.count = 0
        self.keep = True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for frame in self.source:
            if self.keep:
                self.frames.append(frame)
            self.count += 1

    def wait(self, count: int) -> list[Frame]:
        """Until so many frames have come."""
        wait_for(lambda: self.count >= count, tell=lambda: [frame.source for frame in self.frames])
        return self.frames

    def close(self) -> list[str]:
        """End the source; the names of all frames."""
        self.source.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        return [frame.source for frame in self.frames]
