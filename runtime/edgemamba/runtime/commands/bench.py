"""``edgemamba bench``: latency, throughput and memory of a bundle."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgemamba.runtime.benchmark import ROUNDS, Budget, Configuration, Measurement, measure, plan
from edgemamba.runtime.benchmark_plot import plot
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.engines import available, backend_class
from edgemamba.runtime.errors import EngineError, SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.provenance import provenance

# Milliseconds; on a narrow terminal the first three.
_LATENCIES = ("p50 ms", "p90", "p95", "p99", "mean", "min")
_WIDE = 92


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle: the folder that `edgemamba export` wrote.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="Backend to measure; repeat for several. Default, or `all`: every one that can be used here."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    size: Annotated[
        str, typer.Option(help="Input sizes where the bundle's height and width are dynamic: 224,384 or 480x640.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to measure each configuration for.")] = 5.0,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Exactly so many runs each, instead of --seconds.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the backend; 0: its own choice.")] = 0,
    max_ms: Annotated[
        float | None, typer.Option(help="A bar: exit 1 where a median latency is above so many milliseconds.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the figures to this file; - for stdout.")
    ] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the figures: .png, .svg or .pdf.")] = None,
) -> None:
    """Measure latency, throughput and peak memory of a bundle by backend, batch and size.

    Example: edgemamba bench vim_tiny/ --backend all --batch 1,8 --json bench.json --plot bench.png

    Each configuration runs in a process of its own; the backends of one batch and size take turns. What is timed is the
    graph alone, from a frame of the right size to logits. Peak memory is counted above the loaded session.
    """
    loaded = Bundle.load(bundle)
    if plot_file is not None:
        require("matplotlib", purpose="--plot")
    for target in (json_file, plot_file):
        if target is not None and str(target) != "-":
            _check_writable(Path(target))
    configurations = plan(loaded, _backends(loaded, backend), _numbers(batch), _sizes(size), threads)
    facts = provenance()
    console = Console(stderr=json_file == "-", highlight=False)
    if not console.is_terminal:
        console.width = 120
    measurements = _measure(loaded, configurations, Budget(seconds, iterations))
    _print(console, loaded, measurements, facts)
    if json_file is not None:
        _write_json(json_file, loaded, measurements, facts)
    if plot_file is not None:
        plot(measurements, f"{loaded.manifest.model.name} ({loaded.manifest.precision}), {facts['cpu']}", plot_file)
        console.print(f"figure: {plot_file}")
    _judge(measurements, max_ms)


def _backends(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    reasons = available(bundle)
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        raise EngineError(
            "no backend can be used here; " + "; ".join(f"{name}: {why}" for name, why in reasons.items())
        )
    if not names or "all" in names:
        return usable
    chosen = [usable[0] if name == "auto" else name for name in names]
    for name in chosen:
        engine_class = backend_class(name)
        reason = engine_class.unavailable() or engine_class.unsuited(bundle)
        if reason:
            raise EngineError(f"backend {name} cannot be used here: {reason}")
    return list(dict.fromkeys(chosen))


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--batch takes positive numbers separated by commas, not {text!r}")
    return [int(part) for part in parts]


def _sizes(text: str) -> list[tuple[int, int]]:
    """``224,480x640`` to (224, 224), (480, 640): height by width."""
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", part)
        if found is None or 0 in (height := int(found[1]), width := int(found[2] or found[1])):
            raise typer.BadParameter(f"--size takes 224 or HEIGHTxWIDTH, separated by commas, not {part!r}")
        sizes.append((height, width))
    return sizes


def _measure(bundle: Bundle, configurations: Sequence[Configuration], budget: Budget) -> list[Measurement]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=len(configurations) * ROUNDS)

        def progress(configuration: Configuration) -> None:
            text = f"{configuration.backend} batch {configuration.batch} {configuration.height}x{configuration.width}"
            bar.update(task, description=text, advance=1)

        return list(measure(bundle, configurations, budget, progress))


def _print(console: Console, bundle: Bundle, measurements: Sequence[Measurement], facts: dict[str, Any]) -> None:
    manifest = bundle.manifest
    table = Table(
        title=f"{manifest.model.name} ({manifest.precision}), {bundle.path}", title_justify="left", box=SIMPLE_HEAD
    )
    wide = console.width >= _WIDE
    table.add_column("backend", no_wrap=True)
    for heading in ("batch", "size", *(_LATENCIES if wide else _LATENCIES[:3]), "frames/s", "MiB*"):
        table.add_column(heading, justify="right", no_wrap=True)
    for m in measurements:
        c = m.configuration
        head = (c.backend, str(c.batch), f"{c.height}x{c.width}")
        if m.error is not None:
            table.add_row(*head, "failed")
            continue
        mean = sum(m.latencies_ms) / len(m.latencies_ms)
        figures = [*(m.percentile(q) for q in (50, 90, 95, 99)), mean, min(m.latencies_ms)]
        cells = [f"{figure:.2f}" for figure in (figures if wide else figures[:3])]
        memory = "n/a" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.1f}"
        table.add_row(*head, *cells, f"{m.throughput:.1f}", memory)
    console.print(table)
    runs = sorted({len(m.latencies_ms) for m in measurements if m.error is None})
    if runs:
        counted = f"{runs[0]} runs" if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]} runs"
        console.print(f"{counted} each, after a warm-up. * peak memory above the loaded session")
    for m in measurements:
        if m.error is not None:
            console.print(f"{m.configuration.backend}: {m.error}", markup=False)
    threads = sorted({str(m.engine["threads"]) for m in measurements if "threads" in m.engine})
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    console.print(
        f"{facts['cpu']} ({facts['isa'] or facts['architecture']}), {'/'.join(threads) or '?'} threads of {facts['cores']} "
        f"cores, {packages}, edgemamba {facts['edgemamba']}{' ' + facts['commit'] if facts['commit'] else ''}, {facts['date']}",
        markup=False,
    )


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written now, and not after minutes of measuring."""
    existing = path if path.exists() else path.parent
    if path.is_dir() or not existing.exists():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
    elif not os.access(existing, os.W_OK) or (existing is not path and not existing.is_dir()):
        reason = "no permission" if existing.is_dir() or existing is path else f"{existing} is no folder"
    else:
        return
    raise SinkError(f"{path} cannot be written: {reason}")


def _write_json(target: str, bundle: Bundle, measurements: Sequence[Measurement], facts: dict[str, Any]) -> None:
    manifest = bundle.manifest
    document = {
        "format": 1,
        "provenance": facts,
        "bundle": {
            "model": manifest.model.name,
            "precision": manifest.precision,
            "opset": manifest.opset,
            "sha256": manifest.files[MODEL],
        },
        "results": [measurement.to_json() for measurement in measurements],
    }
    text = json.dumps(document, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SinkError(f"{target} cannot be written: {error.strerror}") from None


def _judge(measurements: Sequence[Measurement], max_ms: float | None) -> None:
    """Exit 2 where nothing could be measured, 1 where something failed or is above the bar."""
    failed = [m for m in measurements if m.error is not None]
    if len(failed) == len(measurements):
        raise EngineError(f"nothing could be measured; {failed[0].configuration.backend}: {failed[0].error}")
    slow = [m for m in measurements if m.error is None and max_ms is not None and m.percentile(50) > max_ms]
    for m in slow:
        c = m.configuration
        where = f"{c.backend} batch {c.batch} {c.height}x{c.width}"
        typer.echo(f"{where}: median {m.percentile(50):.2f} ms is above the bar of {max_ms:g} ms", err=True)
    if failed or slow:
        raise typer.Exit(1)
