"""Handing results to the sinks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.privacy import Redactor
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink

__all__ = ["Writer"]

# Results that wait for the sinks.
_ROOM = 8


class Writer:
    """Results to the sinks: in a thread of its own, and for windows in the caller's.

    A sink that is slow makes the stream wait, not grow. Sinks see results without what may identify a patient, save those
    that say they must (DICOM objects).

    Args:
        sinks: opened by :meth:`start`, closed by :meth:`stop`.
        report: its stage ``sink`` is timed here; shown by sinks that show it.
        engine: described by sinks that describe it.
        redactor: what others may see of a result.
        on_written: told each frame whose result all sinks have, in order, by whichever thread wrote it last.
    """

    def __init__(
        self,
        sinks: tuple[Sink, ...],
        report: StreamReport,
        engine: Engine,
        redactor: Redactor,
        on_written: Callable[[Frame], None],
    ) -> None:
        self._sinks = sinks
        self._on_written = on_written
        self._here = tuple(sink for sink in sinks if sink.in_callers_thread)
        self._apart = tuple(sink for sink in sinks if not sink.in_callers_thread)
        self._report = report
        self._engine = engine
        self._redactor = redactor
        self._queue: queue.Queue[Result | None] = queue.Queue(_ROOM)
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="edgemamba-sinks", daemon=True)

    def start(self) -> None:
        """Open the sinks; those opened before one that fails are closed by :meth:`stop`."""
        for sink in self._sinks:
            sink.attach(self._report, self._engine)
            sink.open(self._report.source)
        if self._apart:
            self._thread.start()

    def put(self, result: Result) -> bool:
        """Wait for room and queue a result; False where a sink wants no more (its window was closed).

        Raises:
            SinkError: a sink failed on this or an earlier one.
        """
        self._write(self._here, result)
        while self._apart:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(result, timeout=0.1)
                break
            except queue.Full:
                continue
        return all(sink.wants_more for sink in self._sinks)

    def given(self, result: Result) -> None:
        """The caller has had the result, and has come back for the next one: without other sinks, that is all it is for."""
        if not self._apart:
            self._on_written(result.frame)

    def abandon(self) -> None:
        """Wait for no sink any longer: a flag and nothing else, so that a signal handler may call it."""
        self._abandoned = True

    def stop(self) -> BaseException | None:
        """Write what is queued and close every sink; returns the first failure. Sinks that hang when :meth:`abandon` is called are
        left as they are."""
        if self._thread.ident is not None:
            while self._thread.is_alive() and self._error is None and not self._abandoned:
                try:
                    self._queue.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue
            while self._thread.is_alive():
                if self._abandoned:
                    return self._error
                self._thread.join(0.1)
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # a defect of one sink must not leave the others unfinished
                self._error = self._error or error
        return self._error

    def _run(self) -> None:
        try:
            while (result := self._queue.get()) is not None:
                with self._report.stages["sink"].measure():
                    self._write(self._apart, result)
                self._on_written(result.frame)
        except BaseException as error:
            self._error = error

    def _write(self, sinks: tuple[Sink, ...], result: Result) -> None:
        if not sinks:
            return
        public = self._redactor.result(result)
        for sink in sinks:
            sink.write(result if sink.identified else public)
