"""`edgemamba verify`: PyTorch against every engine, on the same inputs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from edgemamba.export.parity import PARITY_HTML, ParityReport, Tolerance
from edgemamba.export.verification import verify as verify_bundle
from edgemamba.runtime.bundle import Bundle


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder that `edgemamba export` wrote.")],
    inputs: Annotated[
        str | None, typer.Option(help="A folder of pictures, an image, a video or DICOM; default: synthetic pictures.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend to check; may be repeated. Default: all usable.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="PyTorch's weights, in place of the bundle's own.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of frames; default 18, or up to 64 of --inputs.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Frames per run, where the graph's batch is dynamic.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic pictures.")] = 0,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance; default 1e-4 (fp32), 2e-2 (fp16).")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance; default as atol.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Hold every engine against PyTorch in float32, and say where they part if they do.

    Writes parity.json and parity.html into the bundle. Exit code 1 where a backend is past the tolerance.

    [bold]edgemamba verify vim_tiny/ --inputs photos/[/bold]
    """
    console = Console(stderr=True)
    loaded = Bundle.load(bundle)
    tolerance = _tolerance(Tolerance.of(loaded.manifest.precision), atol, rtol)
    with console.status("verifying") as status:
        report = verify_bundle(
            loaded,
            backend,
            inputs,
            checkpoint=checkpoint,
            samples=samples,
            batch=batch,
            seed=seed,
            tolerance=tolerance,
            progress=lambda step: status.update(step),
        )
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _show(report, loaded, Console())
    if not report.passed:
        raise typer.Exit(1)


def _tolerance(default: Tolerance, atol: float | None, rtol: float | None) -> Tolerance:
    try:
        return Tolerance(atol=default.atol if atol is None else atol, rtol=default.rtol if rtol is None else rtol)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"--{first['loc'][0]} is {first['input']}: {first['msg']}") from None


def _show(report: ParityReport, bundle: Bundle, console: Console) -> None:
    """The verdict, a table, and where to read more."""
    count = len(report.inputs.samples)
    print_line = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    print_line(f"{report.model} {report.precision}, {count} {report.inputs.kind} frames, against PyTorch in float32")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("backend", no_wrap=True)
    for name in ("max |error|", "of tolerance", "top-1", "latency", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("pytorch", "", "", "", f"{report.reference['latency_ms']:.2f} ms", "reference")
    for backend in report.backends:
        verdict = "[green]passed[/green]" if backend.passed else "[red]failed[/red]"
        for output in backend.outputs:
            table.add_row(
                backend.backend,
                _figure(output.max_abs_error),
                _figure(output.max_of_tolerance),
                f"{100 * backend.agreement.top1:.1f} %" if backend.agreement else "",
                f"{backend.latency_ms:.2f} ms" if backend.latency_ms is not None else "",
                verdict,
            )
        if not backend.outputs:
            table.add_row(backend.backend, "", "", "", "", verdict)
    console.print(table)
    for backend in report.backends:
        for line in filter(None, (backend.error, backend.divergence and backend.divergence.describe())):
            print_line(f"{backend.backend}: {line}")
    for name, reason in report.left_out.items():
        print_line(f"left out: {name}: {reason}")
    for reason in report.inputs.skipped:
        print_line(f"skipped: {reason}")
    print_line(f"report: {bundle.path / PARITY_HTML}")


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
