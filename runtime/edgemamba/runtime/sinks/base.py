"""The protocol of all sinks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

from edgemamba.runtime.results import Result
from edgemamba.runtime.sources.base import Source


class Sink(ABC):
    """Where results go. :meth:`open` before the first result, :meth:`close` after the last, also when something failed.

    What was written stays readable whenever a sink is closed; only the process being killed can cost a container that is
    finished on closing (MP4).
    """

    path: Path

    @abstractmethod
    def open(self, source: Source) -> None:
        """Make the output ready; a source's pace and liveness are known by now.

        Raises:
            SinkError: it cannot be written.
        """

    @abstractmethod
    def write(self, result: Result) -> None:
        """Write one result.

        Raises:
            SinkError: it cannot be written (for instance, the disk is full).
        """

    @abstractmethod
    def close(self) -> None:
        """Finish the output; closing twice is harmless.

        Raises:
            SinkError: the end cannot be written.
        """

    def describe(self) -> str:
        """What was written, for a person."""
        return str(self.path)

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
