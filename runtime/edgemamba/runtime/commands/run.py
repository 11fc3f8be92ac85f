"""``edgemamba run``: stream a source through a bundle."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgemamba.runtime.dicom_grayscale import Voi, Window
from edgemamba.runtime.engines import Engine, load
from edgemamba.runtime.errors import EngineError, SinkError
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import ImageFolderSink, Sink, open_sink
from edgemamba.runtime.sources import Source, open_source
from edgemamba.runtime.streaming import Stream, stream

_VOI = ("auto", "lut", "window", "full", "minmax")


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle: the folder that `edgemamba export` wrote.")],
    source: Annotated[
        str,
        typer.Option(
            "--source", "-s", help="Video, image or DICOM file; folder or glob of images and DICOM; camera number."
        ),
    ],
    out: Annotated[
        list[str] | None,
        typer.Option(
            "--out",
            "-o",
            help="Annotated video (.mp4, .mkv, .avi), JSON Lines (.jsonl, or - for stdout), or a folder of annotated "
            "pictures; repeat for several. Without it, one line a frame is printed.",
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Inference backend; `edgemamba doctor` lists them.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames per inference.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each frame.")] = 5,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the backend; 0: its own choice.")] = 0,
    window_center: Annotated[
        float | None, typer.Option(help="DICOM: show this window instead of the file's (with --window-width).")
    ] = None,
    window_width: Annotated[float | None, typer.Option(help="DICOM: the window's width.")] = None,
    voi: Annotated[
        str, typer.Option(help=f"DICOM: which value of interest transformation of the file: {', '.join(_VOI)}.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Stream a video, camera, image, folder or DICOM source through a bundle.

    Example: edgemamba run vim_tiny/ --source clip.mp4 --out result.mp4 --out result.jsonl

    Ends with frames per second, the latency of each stage, and what was skipped or dropped. Files that cannot be read are
    skipped and counted; Ctrl-C ends the stream and finishes what was written.
    """
    chosen = _voi(window_center, window_width, voi)
    outs = out or []
    if as_json and "-" in outs:
        raise typer.BadParameter("--json and --out - would both write to stdout; choose one")
    console = Console(stderr=True, highlight=False)
    _quiet_libraries()
    with _reporting(console), _terminable(), open_source(source, voi=chosen) as opened:
        sinks = [open_sink(path) for path in outs]
        _refuse_overwriting(sinks, opened, bundle)
        with load(bundle, backend, threads=threads) as engine:
            results = stream(opened, engine, batch=batch, top_k=top_k, sinks=sinks, max_frames=max_frames)
            interrupted = False
            try:
                with results:
                    if outs or as_json:
                        _consume(results, _least(opened.length, max_frames), console)
                    else:
                        for result in results:
                            print(_line(result), flush=True)
            except KeyboardInterrupt:
                interrupted = True
                console.print("interrupted; what follows and what was written stand for the frames until then")
            _summarise(results.report, engine, sinks, console, as_json)
            if interrupted:
                raise KeyboardInterrupt
    if not results.report.frames:
        reasons = results.report.source.skipped.reasons
        raise EngineError(f"not one frame gave a result{f'; the first: {reasons[0]}' if reasons else ''}")


def _voi(center: float | None, width: float | None, voi: str) -> Voi:
    if (center is None) != (width is None):
        raise typer.BadParameter("--window-center and --window-width belong together")
    if center is not None and width is not None:
        try:
            return Window(center, width)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if voi not in _VOI:
        raise typer.BadParameter(f"--voi {voi} is unknown; choose one of: {', '.join(_VOI)}")
    return voi  # type: ignore[return-value]


def _refuse_overwriting(sinks: Sequence[Sink], source: Source, bundle: Path) -> None:
    """No output may replace a file that is being read, or another output."""
    inputs = {path.resolve() for path in source.files}
    folders = {path.parent for path in inputs} | {bundle.resolve()}
    seen: set[Path] = set()
    for sink in sinks:
        path = sink.path.resolve()
        if path in inputs:
            raise SinkError(f"{sink.path} is the source itself; write to another file")
        if isinstance(sink, ImageFolderSink) and path in folders:
            raise SinkError(f"{sink.path} is the folder that is being read; write to another one")
        if path in seen:
            raise SinkError(f"{sink.path} is given twice as an output")
        seen.add(path)


def _least(*numbers: int | None) -> int | None:
    """The smallest of the numbers that are known."""
    return min((number for number in numbers if number is not None), default=None)


def _consume(results: Stream, total: int | None, console: Console) -> None:
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


def _line(result: Result) -> str:
    classes = ", ".join(f"{item.name} {100 * item.probability:.1f}%" for item in result.top)
    return f"{result.frame.index}\t{result.frame.timestamp:.3f}\t{result.frame.source}\t{classes}"


def _summarise(report: StreamReport, engine: Engine, sinks: Sequence[Sink], console: Console, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {
            "bundle": str(engine.bundle.path),
            "engine": engine.describe(),
            **report.to_json(),
            "outputs": [str(sink.path) for sink in sinks],
        }
        print(json.dumps(facts, indent=2))
        return
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("stage, ms", "p50", "p95", "p99", "max"):
        table.add_column(heading, justify="left" if heading.startswith("stage") else "right")
    for name, histogram in report.stages.items():
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
    console.print(f"{report.skipped} skipped, {report.dropped} dropped")
    for sink in sinks:
        console.print(escape(f"wrote {sink.describe()}"), soft_wrap=True)


@contextmanager
def _reporting(console: Console) -> Iterator[None]:
    """Show the runtime's log lines (what was skipped, and why) on stderr, above the progress bar."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"edgemamba: {escape(record.getMessage())}", soft_wrap=True)

    logger = logging.getLogger("edgemamba")
    handler = Handler(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the stream as Ctrl-C does: with all outputs finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_libraries() -> None:
    """OpenCV, FFmpeg and pydicom comment on bad files by themselves; ours is the one line a file.

    pydicom's warnings also quote values, and a value may identify a patient.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    with suppress(ImportError, AttributeError):  # absent, or built without logging
        importlib.import_module("cv2").utils.logging.setLogLevel(0)
