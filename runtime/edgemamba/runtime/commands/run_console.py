"""What ``edgemamba run`` shows on the terminal, and how it listens to signals."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgemamba.runtime.engines import Engine
from edgemamba.runtime.privacy import LogFilter, Redactor
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import Sink
from edgemamba.runtime.streaming import Stream


def consume(results: Stream, total: int | None, console: Console) -> None:
    """Take all results, with a progress bar where stderr is a terminal."""
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for result in results:
            report = results.report
            dropped = f", {report.dropped} dropped" if report.dropped else ""
            text = f"{report.fps:.1f}/s{dropped}  {escape(result.label)} {100 * result.probability:.0f}%"
            progress.update(task, completed=result.frame.index + 1, description=text)


def line(result: Result) -> str:
    """A result as a line of text, columns apart by tabs."""
    classes = ", ".join(f"{item.name} {100 * item.probability:.1f}%" for item in result.top)
    return f"{result.frame.index}\t{result.frame.timestamp:.3f}\t{result.frame.source}\t{classes}"


def summarise(
    report: StreamReport, engine: Engine, sinks: Sequence[Sink], console: Console, as_json: bool, redactor: Redactor
) -> None:
    """What the stream did: a table on stderr, or JSON on stdout."""
    if as_json:
        facts: dict[str, Any] = {
            "bundle": str(engine.bundle.path),
            "engine": engine.describe(),
            **report.to_json(),
            "outputs": [str(sink.path) if sink.path is not None else sink.describe() for sink in sinks],
        }
        print(redactor.text(json.dumps(facts, indent=2)))
        return
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("stage, ms", "p50", "p95", "p99", "max"):
        table.add_column(heading, justify="left" if heading.startswith("stage") else "right")
    for name, histogram in {**report.stages, "capture to result": report.latency}.items():
        if histogram.count:
            summary = histogram.summary()
            values = (summary.p50, summary.p95, summary.p99, summary.max)
            table.add_row(name, *(f"{value:.2f}" for value in values))
    console.print(
        f"{report.frames} frames in {report.seconds:.2f} s: {report.fps:.1f} frames/s with {engine.backend}; "
        f"{100 * report.overhead:.0f}% of the time outside the engine",
        soft_wrap=True,
    )
    console.print(table)
    stalls = f", {report.stalls} stalls" if report.stalls else ""
    console.print(f"{report.skipped} skipped, {report.dropped} dropped{stalls}")
    for sink in sinks:
        wrote = "wrote " if sink.path is not None else ""
        console.print(escape(redactor.text(f"{wrote}{sink.describe()}")), soft_wrap=True)


class SparingHandler(logging.Handler):
    """Log lines on the console, at most so many a minute: a camera that gives nothing but damaged frames for days must not fill
    a journal. What is left out is said; the report counts it all the same."""

    def __init__(self, console: Console, most: int = 30, seconds: float = 60.0) -> None:
        super().__init__(logging.WARNING)
        self._console = console
        self._most = most
        self._seconds = seconds
        self._start = -seconds
        self._shown = 0
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._start >= self._seconds:
            self._start, self._shown = now, 0
            self.say_what_was_left_out()
        if self._shown >= self._most:
            self._left_out += 1
            return
        self._shown += 1
        self._print(record.getMessage())

    def say_what_was_left_out(self) -> None:
        if self._left_out:
            self._print(f"{self._left_out} more lines were left out ({self._most} a minute are shown)")
        self._left_out = 0

    def _print(self, text: str) -> None:
        self._console.print(f"edgemamba: {escape(text)}", soft_wrap=True)


@contextmanager
def reporting(console: Console, include_phi: bool) -> Iterator[None]:
    """Show the runtime's log lines (what was skipped, and why) on stderr, above the progress bar."""

    logger = logging.getLogger("edgemamba")
    handler = SparingHandler(console)
    if not include_phi:
        handler.addFilter(LogFilter())
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        handler.say_what_was_left_out()
        logger.removeHandler(handler)
        logger.propagate = propagate


class Interruption:
    """SIGINT (Ctrl-C) and SIGTERM: the first lets the stream end with all outputs finished, the second ends at once.

    Before there is a stream, the first one raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        if self.stream is None:
            raise KeyboardInterrupt
        if self.asked:
            self.stream.abandon()
            raise KeyboardInterrupt
        self.asked = True
        self.stream.stop()


def quiet_libraries() -> None:
    """OpenCV, FFmpeg and pydicom comment on bad files by themselves; ours is the one line a file.

    pydicom's warnings also quote values, and a value may identify a patient.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    with suppress(ImportError, AttributeError):  # absent, or built without logging
        importlib.import_module("cv2").utils.logging.setLogLevel(0)
