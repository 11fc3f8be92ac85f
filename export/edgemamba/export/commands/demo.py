"""The verb ``edgemamba demo``."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgemamba.export.demo.run import FULL, QUICK, DemoReport, run_demo, summary
from edgemamba.runtime.extras import require


def demo(
    out: Annotated[Path, typer.Option(help="New folder; where it exists, the next free of demo-2, demo-3, ...")] = Path(
        "demo"
    ),
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs, in place of the demo's own.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller model and fewer pictures: half a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Train, export, verify and stream a small model on real data, in minutes on a CPU.

    A small MedMamba learns to tell axial, coronal and sagittal slices of the MNI152 brain template apart (read from nilearn's
    wheel; nothing is downloaded), is exported to a bundle, compared with PyTorch, and then reads held-out slices from a
    multi-frame DICOM file and from a video.

    Example: edgemamba demo --out demo/
    """
    start = time.monotonic()
    require("nilearn", purpose="the demo's brain volume")
    console = Console(stderr=True)
    folder = next_free(out)
    if folder != out:
        console.print(f"{out} exists: this run goes to {folder}, and reuses nothing", highlight=False, soft_wrap=True)
    scale = QUICK if quick else FULL
    if epochs is not None:
        scale = dataclasses.replace(scale, epochs=epochs)
    report = run_demo(folder, scale, seed, console)
    _conclude(console, report, folder, time.monotonic() - start)
    if as_json:
        print(json.dumps({**summary(report), "folder": str(folder)}))
    if not report.passed:
        raise typer.Exit(1)


def next_free(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _conclude(console: Console, report: DemoReport, folder: Path, seconds: float) -> None:
    low, high = report.interval
    console.rule()
    console.print(
        f"[bold]{report.accuracy:.1%}[/bold] of {report.n} held-out slices are told right (95 % interval {low:.1%} to "
        f"{high:.1%} if slices were independent; chance 33.3 %), parity "
        f"{'[green]passed[/green]' if report.parity else '[red]failed[/red]'}, {seconds:.0f} s in all.",
    )
    if low <= 1 / 3:
        console.print("[red]This is not clearly above chance.[/red] Train for longer: --epochs.")
    for name, what in (
        ("dcm_result.mp4", "the DICOM stream, annotated (dcm_result.jsonl: every probability)"),
        ("mp4_result.mp4", "the video stream, annotated"),
        ("demo.png", "training curves, confusion matrix, held-out slices"),
        ("bundle/parity.html", "how far each engine is from PyTorch"),
        ("training/", "checkpoints, metrics.csv, TensorBoard events"),
        ("summary.json", "these figures"),
    ):
        console.print(f"  {folder / name}  [dim]{what}[/dim]", highlight=False, soft_wrap=True)
    console.print(f"Next: edgemamba run {folder / 'bundle'} --source {folder / 'held_out.dcm'}", highlight=False)
