"""``edgemamba run``: stream a source through a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from edgemamba.runtime.commands.run_console import Interruption, consume, line, quiet_libraries, reporting, summarise
from edgemamba.runtime.commands.run_volume import is_for_volumes, run_volume
from edgemamba.runtime.dicom_grayscale import Voi, Window
from edgemamba.runtime.engines import load
from edgemamba.runtime.errors import EdgeMambaError, EngineError, SinkError
from edgemamba.runtime.privacy import Redactor
from edgemamba.runtime.sinks import ImageFolderSink, Sink, open_sink
from edgemamba.runtime.sources import Source, open_source
from edgemamba.runtime.sources.watch import WatchSource
from edgemamba.runtime.streaming import Strategy, Stream, stream

_VOI = ("auto", "lut", "window", "full", "minmax")
_FUNCTIONS = ("linear", "linear_exact", "sigmoid")  # PS3.3 C.11.2.1.2 and C.11.2.1.3


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle: the folder that `edgemamba export` wrote.")],
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            "-s",
            help="Video, image or DICOM file; folder or glob of images and DICOM; camera number; or a URI: "
            "rtsp://camera/live, http://host/mjpeg, csi://0, gst://PIPELINE, watch://folder, dicom://folder, "
            "dimse://AET@0.0.0.0:11112 (receives), dicomweb://host/studies/UID. For models of volumes: a CT or MR series or "
            "NIfTI (.nii, .nii.gz); repeat for each modality.",
        ),
    ],
    out: Annotated[
        list[str] | None,
        typer.Option(
            "--out",
            "-o",
            help="Annotated video (.mp4, .mkv, .avi), JSON Lines (.jsonl, or - for stdout), .csv, a folder of annotated "
            "pictures, or a URI: window://, web://:8080, metrics://:9100, and as DICOM objects dicom://reports, "
            "dimse://PACS@10.0.0.5:104, dicomweb://host/dicom-web. Repeat for several. Without any, one line a frame is "
            "printed. Of volumes: DICOM SEG (.seg.dcm), NIfTI (.nii.gz), a picture (.png).",
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Inference backend; `edgemamba doctor` lists them.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames per inference, at most.")] = 1,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Wait so long for a batch to fill. Default: live sources 0; files until it is full.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=f"What happens to a frame while the engine is busy: {', '.join(Strategy)}. Default: live sources drop "
            "the oldest, and count it; all others wait, and never drop.",
            show_default=False,
        ),
    ] = None,
    buffer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames that may wait for the engine. Default: one batch of a live source, for the lowest latency.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each frame.")] = 5,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the backend; 0: its own choice.")] = 0,
    web: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Show a live page there. Beyond this machine (0.0.0.0:8080) visitors need a token.",
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Serve Prometheus metrics there, without the page.")
    ] = None,
    web_token: Annotated[
        str | None,
        typer.Option(
            envvar="EDGEMAMBA_WEB_TOKEN",
            help="The token for --web and --metrics; by default a random one where one is needed.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the frames in a window; q ends.")] = False,
    stall_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Say so when the source gives nothing for so long; 0: never. Default: 10 for live sources.",
            show_default=False,
        ),
    ] = None,
    stop_on_stall: Annotated[
        bool, typer.Option("--stop-on-stall", help="End with exit code 2 then, for whoever restarts it.")
    ] = False,
    include_phi: Annotated[
        bool,
        typer.Option("--include-phi", help="Let outputs and log lines name the patient, where the source does."),
    ] = False,
    window_center: Annotated[
        float | None, typer.Option(help="DICOM: show this window instead of the file's (with --window-width).")
    ] = None,
    window_width: Annotated[float | None, typer.Option(help="DICOM: the window's width.")] = None,
    window_function: Annotated[
        str, typer.Option(help=f"DICOM: the window's function: {', '.join(_FUNCTIONS)}.")
    ] = "linear",
    voi: Annotated[
        str, typer.Option(help=f"DICOM: which value of interest transformation of the file: {', '.join(_VOI)}.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Stream a video, camera, image, folder or DICOM source through a bundle; or segment a volume.

    Example: edgemamba run vim_tiny/ --source clip.mp4 --out result.mp4 --out result.jsonl

    Example: edgemamba run segmamba/ --source ct/ --out mask.seg.dcm --out overview.png

    Ends with frames per second, the latency of each stage, and what was skipped or dropped. Files that cannot be read are
    skipped and counted; Ctrl-C (or SIGTERM) ends the stream and finishes what was written, a second one ends at once.
    """
    chosen = _voi(window_center, window_width, window_function, voi)
    outs = [*(out or []), *(["window://"] if show else [])]
    outs += [f"web://{web}"] if web is not None else []
    outs += [f"metrics://{metrics}"] if metrics is not None else []
    if as_json and "-" in outs:
        raise typer.BadParameter("--json and --out - would both write to stdout; choose one")
    if stop_on_stall and stall_seconds == 0:
        raise typer.BadParameter("--stop-on-stall needs a time; --stall-seconds 0 turns the watchdog off")
    console = Console(stderr=True, highlight=False)
    redactor = Redactor(include_phi)
    quiet_libraries()
    try:
        if is_for_volumes(bundle, outs):
            streams = {
                "--max-frames": max_frames,
                "--strategy": strategy,
                "--buffer": buffer,
                "--batch-wait-ms": batch_wait_ms,
                "--stall-seconds": stall_seconds,
                "--stop-on-stall": stop_on_stall,
                "--window-center": window_center,
                "--voi": voi != "auto",
            }
            run_volume(
                bundle,
                source,
                outs,
                backend=backend,
                batch=batch,
                threads=threads,
                include_phi=include_phi,
                as_json=as_json,
                others=streams,
            )
            return
        if len(source) > 1:
            raise typer.BadParameter("one --source at a time; several are modalities of a model of volumes")
        with reporting(console, include_phi), Interruption() as interruption:
            opened = open_source(source[0], voi=chosen)
            try:
                sinks = [open_sink(name, token=web_token, include_phi=include_phi) for name in outs]
                _refuse_overwriting(sinks, opened, bundle)
                engine = load(bundle, backend, threads=threads)
            except BaseException:
                opened.close()
                raise
            with engine:  # from here on the source is the stream's to close: it may still hang in a driver
                results = stream(
                    opened,
                    engine,
                    batch=batch,
                    batch_wait=None if batch_wait_ms is None else batch_wait_ms / 1000,
                    strategy=strategy,
                    buffer=buffer,
                    top_k=top_k,
                    sinks=sinks,
                    max_frames=max_frames,
                    stall_seconds=stall_seconds,
                    stop_on_stall=stop_on_stall,
                    include_phi=include_phi,
                )
                interruption.stream = results
                _announce(sinks, console)
                with results:
                    if outs or as_json:
                        consume(results, _least(opened.length, max_frames), console)
                    else:
                        for result in results:
                            print(line(redactor.result(result)), flush=True)
                if interruption.asked:
                    console.print("interrupted; what follows and what was written stand for the frames until then")
                summarise(results.report, engine, sinks, console, as_json, redactor)
                if interruption.asked:
                    raise KeyboardInterrupt
        _refuse_nothing(results)
    except EdgeMambaError as error:
        error.args = (redactor.text(str(error)),)
        raise


def _voi(center: float | None, width: float | None, function: str, voi: str) -> Voi:
    if function.lower() not in _FUNCTIONS:
        raise typer.BadParameter(f"--window-function {function} is unknown; choose one of: {', '.join(_FUNCTIONS)}")
    if center is None and function.lower() != "linear":
        raise typer.BadParameter("--window-function belongs to --window-center and --window-width")
    if (center is None) != (width is None):
        raise typer.BadParameter("--window-center and --window-width belong together")
    if center is not None and width is not None:
        try:
            return Window(center, width, function.upper())  # type: ignore[arg-type]
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
        if sink.path is None:
            continue
        path = sink.path.resolve()
        if path in inputs:
            raise SinkError(f"{sink.path} is the source itself; write to another file")
        watched = source.folder.resolve() if isinstance(source, WatchSource) else None
        if watched is not None and path.is_relative_to(watched):  # whatever is written there would come back as a frame
            raise SinkError(f"{sink.path} is in the folder that is being watched; write to another one")
        if isinstance(sink, ImageFolderSink) and path in folders:
            raise SinkError(f"{sink.path} is the folder that is being read; write to another one")
        if path in seen:
            raise SinkError(f"{sink.path} is given twice as an output")
        seen.add(path)


def _announce(sinks: Sequence[Sink], console: Console) -> None:
    """Where a browser finds the page; the only place where the token is shown."""
    for sink in sinks:
        if url := getattr(sink, "url", None):
            elsewhere = f", from elsewhere {other}" if (other := getattr(sink, "url_elsewhere", None)) else ""
            what = sink.describe().partition(" at ")[0]
            console.print(escape(f"edgemamba: {what} at {url}{elsewhere}"), soft_wrap=True)


def _refuse_nothing(results: Stream) -> None:
    """A stream without one result has failed, whatever the single frames' reasons."""
    if not results.report.frames:
        reasons = results.report.source.skipped.reasons
        raise EngineError(f"not one frame gave a result{f'; the first: {reasons[0]}' if reasons else ''}")


def _least(*numbers: int | None) -> int | None:
    """The smallest of the numbers that are known."""
    return min((number for number in numbers if number is not None), default=None)
