"""``edgemamba run`` with a bundle of volumes: a series or NIfTI in, a mask out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from edgemamba.runtime.bundle import MANIFEST, Manifest, read_manifest
from edgemamba.runtime.commands.run_console import reporting
from edgemamba.runtime.engines import load
from edgemamba.runtime.errors import BundleError, EngineError, SinkError
from edgemamba.runtime.privacy import Redactor
from edgemamba.runtime.volumes.outputs import MASK_SUFFIXES, check_outputs, check_study, write_output
from edgemamba.runtime.volumes.reading import read_volumes
from edgemamba.runtime.volumes.segmenting import Segmentation, segment, volume_card

__all__ = ["is_for_volumes", "run_volume"]


def is_for_volumes(bundle: Path, outs: Sequence[str]) -> bool:
    """Whether the bundle segments volumes; of one that cannot be read, its loader says what is wrong.

    Raises:
        SinkError: it does not, and an output is a mask.
        EngineError: it segments pictures, which no stream carries yet.
    """
    try:
        manifest = read_manifest(bundle.parent if bundle.name == MANIFEST else bundle)
    except BundleError:
        return False
    if manifest.volume is not None:
        return True
    if manifest.task == "segmentation":
        raise EngineError(
            f"{bundle} segments pictures, and streams carry classes only; edgemamba.runtime.load(bundle).infer gives its logits"
        )
    for out in outs:
        if out.lower().endswith(MASK_SUFFIXES) and "://" not in out:
            raise SinkError(f"{out}: masks come from bundles that segment volumes; {bundle} classifies pictures")
    return False


def run_volume(
    bundle: Path,
    sources: Sequence[str],
    outs: Sequence[str],
    *,
    backend: str,
    batch: int,
    threads: int,
    include_phi: bool,
    as_json: bool,
    others: Mapping[str, Any],
) -> None:
    """Segment one study.

    Args:
        others: options of ``run`` that streams have and volumes have not, by name; those that are set are refused.
    """
    for name, value in others.items():
        if value:
            raise typer.BadParameter(f"{name} goes with pictures and video; {bundle} segments volumes")
    console = Console(stderr=True, highlight=False)
    redactor = Redactor(include_phi)
    with reporting(console, include_phi):
        paths = check_outputs(outs, sources, bundle)
        with load(bundle, backend, threads=threads) as engine, _progress(console) as progress:
            manifest = engine.bundle.manifest
            card = volume_card(manifest)
            task = progress.add_task("reading", total=None)
            study = read_volumes(sources, card.modalities)
            check_study(paths, study, include_phi)
            progress.update(task, description="windows")

            def windows(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            result = segment(engine, study, batch=batch, progress=windows)
            for path in paths:
                write_output(path, result, manifest, include_phi)
            facts = engine.describe()
        if as_json:
            document = {"bundle": str(bundle), "engine": facts, "source": study.name, **result.to_json()}
            print(redactor.text(json.dumps({**document, "outputs": [str(path) for path in paths]}, indent=2)))
        else:
            _summarise(result, manifest, console)
            for path in paths:
                console.print(escape(redactor.text(f"wrote {path}")), soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _summarise(result: Segmentation, manifest: Manifest, console: Console) -> None:
    """Labels on stdout, as a table; how they came about on stderr."""
    table = Table(box=None, pad_edge=False)
    table.add_column("label")
    table.add_column("voxels", justify="right")
    table.add_column("ml", justify="right")
    for label in result.labels:
        table.add_row(escape(label.name), str(label.voxels), f"{label.ml:.2f}")
    Console(highlight=False).print(table)
    size = " x ".join(map(str, result.mask.shape))
    console.print(
        f"{manifest.model.name}: {size} voxels ({result.study.grid.orientation}), {result.windows} windows, "
        f"{result.seconds['preparing']:.1f} s of preparing and {result.seconds['segmenting']:.1f} s of segmenting",
        soft_wrap=True,
    )
