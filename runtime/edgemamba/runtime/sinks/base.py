"""The protocol of all sinks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from edgemamba.runtime.results import Result
from edgemamba.runtime.sources.base import Source

if TYPE_CHECKING:
    from edgemamba.runtime.engines.base import Engine
    from edgemamba.runtime.report import StreamReport


class Sink(ABC):
    """Where results go. :meth:`open` before the first result, :meth:`close` after the last, also when something failed.

    What was written stays readable whenever a sink is closed; only the process being killed can cost a container that is
    finished on closing (MP4).

    Attributes:
        path: the file or folder that is written; None for sinks that write none.
        identified: the sink needs what may identify a patient (a DICOM object names whom it belongs to). Others see results
            through a :class:`~edgemamba.runtime.privacy.Redactor`.
        in_callers_thread: results are written in the thread that iterates the stream: windows belong to one thread.
        wants_more: False ends the stream after this result, as if its source had ended.
    """

    path: Path | None = None
    identified: ClassVar[bool] = False
    in_callers_thread: ClassVar[bool] = False
    wants_more: bool = True

    def attach(self, report: StreamReport, engine: Engine) -> None:  # noqa: B027 - optional: for sinks that show it
        """Told before :meth:`open` whose results these will be: the stream's running report, and its engine."""

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
