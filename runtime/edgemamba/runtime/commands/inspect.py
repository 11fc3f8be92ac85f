"""``edgemamba inspect``: what a bundle is, and whether it is what was written."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgemamba.runtime.bundle import MANIFEST, MODEL, Bundle, Manifest, TensorCard, read_manifest
from edgemamba.runtime.errors import BundleError
from edgemamba.runtime.onnx_summary import OnnxSummary, summarise
from edgemamba.runtime.operator import DOMAIN, OP_TYPE
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard

_SCAN = f"{DOMAIN}::{OP_TYPE}"
_OPERATORS_SHOWN = 8


@dataclass(frozen=True)
class FileState:
    """A listed file: its size, and what is wrong with it (None: it is what was written)."""

    name: str
    bytes: int | None
    problem: str | None


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The bundle: the folder that `edgemamba export` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a bundle holds, check every digest, and outline its graph. Needs neither onnx nor an engine.

    Example: edgemamba inspect vim_tiny/

    Exit code 2 where a file is missing, changed, or outside the folder; what can be shown is shown all the same.
    """
    folder = bundle.parent if bundle.name == MANIFEST and bundle.is_file() else bundle
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; a bundle is the folder that `edgemamba export` writes")
    manifest = read_manifest(folder)
    files = [_state(Bundle(folder, manifest), name) for name in manifest.files]
    # Nothing that is not what was written gets parsed.
    intact = any(file.name == MODEL and file.problem is None for file in files)
    graph = summarise(folder / MODEL) if intact else None
    if as_json:
        _print_json(folder, manifest, files, graph)
    else:
        _print_text(folder, manifest, files, graph)
    for file in files:
        if file.problem is not None:
            raise BundleError(file.problem)


def _state(bundle: Bundle, name: str) -> FileState:
    try:
        return FileState(name, bundle.file(name).stat().st_size, None)
    except BundleError as error:
        return FileState(name, None, str(error))


def _print_json(folder: Path, manifest: Manifest, files: list[FileState], graph: OnnxSummary | None) -> None:
    document: dict[str, Any] = {
        "path": str(folder),
        "manifest": manifest.model_dump(mode="json"),
        "files": [asdict(file) for file in files],
        "graph": None if graph is None else asdict(graph) | {"nodes": graph.nodes},
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _print_text(folder: Path, manifest: Manifest, files: list[FileState], graph: OnnxSummary | None) -> None:
    console = Console(highlight=False)
    table = Table(title=escape(str(folder)), title_justify="left", box=SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    config = ", ".join(f"{key}={value}" for key, value in manifest.model.config.items() if not isinstance(value, dict))
    rows = [
        ("model", f"{manifest.model.name}, {manifest.precision}, opset {manifest.opset}"),
        ("task", manifest.task),
        ("configuration", config or "the defaults"),
        ("input", _tensor(manifest.input)),
        *(("output", _tensor(output)) for output in manifest.outputs),
        ("classes", _classes(manifest.class_names)),
        *(_picture_rows(manifest.preprocessing) if manifest.volume is None else _volume_rows(manifest.volume)),
        ("operator", f"{manifest.operator.domain}::{manifest.operator.name} version {manifest.operator.version}"),
        *_graph_rows(graph),
        ("made from", "no checkpoint recorded" if manifest.source is None else manifest.source.file),
        ("made", f"{manifest.created or 'date not recorded'}, with {_versions(manifest)}"),
        ("parity", _parity(manifest)),
    ]
    for heading, text in rows:
        table.add_row(heading, escape(text))
    console.print(table)
    listing = Table("file", box=SIMPLE)
    listing.add_column("size", justify="right")
    listing.add_column("SHA-256")
    for file in files:
        size = "" if file.bytes is None else _size(file.bytes)
        state = (
            f"[green]ok[/] {manifest.files[file.name][:16]}…" if file.problem is None else "[red bold]not as written[/]"
        )
        listing.add_row(escape(file.name), size, state)
    console.print(listing)


def _picture_rows(recipe: Preprocessing) -> list[tuple[str, str]]:
    return [
        ("preprocessing", f"{recipe.resize}, {recipe.interpolation}, to {recipe.size[0]}x{recipe.size[1]}"),
        ("normalisation", f"mean {recipe.mean}, std {recipe.std}, in the graph"),
    ]


def _volume_rows(card: VolumeCard) -> list[tuple[str, str]]:
    spacing = "as the source" if card.spacing is None else f"{' x '.join(f'{step:g}' for step in card.spacing)} mm"
    kinds = (" ".join(f"{key} {value}" for key, value in kind if value is not None) for kind in card.normalisation)
    return [
        ("modalities", ", ".join(card.modalities)),
        ("volume", f"axes {card.orientation}, voxels {spacing}, normalised in the runtime: {'; '.join(kinds)}"),
        ("windows", f"{' x '.join(map(str, card.patch))}, overlap {card.overlap:g}, {card.blending} blending"),
        ("codes", ", ".join(card.codes) or "none of DICOM; segments get private ones"),
    ]


def _graph_rows(graph: OnnxSummary | None) -> list[tuple[str, str]]:
    if graph is None:
        return []
    ranked = sorted(graph.operators.items(), key=lambda item: -item[1])
    common = ", ".join(f"{count} {name}" for name, count in ranked[:_OPERATORS_SHOWN])
    more = len(ranked) - _OPERATORS_SHOWN
    twin = "with" if _SCAN in graph.functions else "WITHOUT: stock runtimes cannot run them"
    return [
        ("graph", f"{graph.nodes} nodes: {common}{f' and {more} other kinds' if more > 0 else ''}"),
        ("scans", f"{graph.operators.get(_SCAN, 0)}; function for stock runtimes: {twin}"),
        ("weights", f"{_size(graph.weight_bytes)} in {graph.initializers} tensors"),
    ]


def _tensor(card: TensorCard) -> str:
    return f"{card.name}: {card.dtype} ({', '.join(map(str, card.shape))})"


def _classes(names: tuple[str, ...], shown: int = 6) -> str:
    if not names:
        return "not named"
    listed = ", ".join(names[:shown])
    return f"{len(names)}: {listed}{', …' if len(names) > shown else ''}"


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.tool_versions.items()) or "tools not recorded"


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        return "never verified; run `edgemamba verify`"
    errors = ", ".join(f"{name} {error:.2g}" for name, error in parity.max_abs_error.items())
    return f"{'passed' if parity.passed else 'FAILED'} on {parity.date}; largest error: {errors or 'not recorded'}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
