"""`edgemamba export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import onnx
import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from edgemamba.export.exporting import Axis
from edgemamba.export.exporting import export as export_bundle
from edgemamba.export.writing import weights_digest
from edgemamba.runtime.bundle import MODEL, Bundle, SourceCard, sha256
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.operator import OP_TYPE
from edgemamba.runtime.preprocessing import MOST_PIXELS
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.train import create_model
from edgemamba.train.checkpoint_opening import open_checkpoint
from edgemamba.train.commands.assignments import parse_assignments

RANDOM_SEED = 0


def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="What `edgemamba train` wrote, or an official checkpoint (then name --model).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.")] = ...,  # type: ignore[assignment]
    model: Annotated[str | None, typer.Option(help="Architecture, as listed by `edgemamba models`.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="By default read from the checkpoint's classifier.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels: 224, or height x width as 224x320; of volumes the patch, 128 or depth x height x width."
        ),
    ] = None,
    volume: Annotated[
        Path | None,
        typer.Option(help="Models of volumes: JSON that says how their input is made (modalities, spacing, ...)."),
    ] = None,
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Of weights and activations.")] = "fp32",
    dynamic: Annotated[str, typer.Option(help="Axes that may vary: batch,height,width; or none.")] = "batch",
    class_names: Annotated[Path | None, typer.Option(help="Text file with one name a line, or a JSON list.")] = None,
    opset: Annotated[int, typer.Option(help="Standard ONNX opset, 18 to 24.")] = 20,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the model's configuration, as key=value; may be repeated."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="No checkpoint: seeded random weights, for benchmarks.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Also write the weights that `verify` starts from.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle in that folder.")] = False,
) -> None:
    """Turn a checkpoint into a bundle: an ONNX graph for every runtime, its manifest, and digests of all files.

    Normalisation and layout are inside the graph; its input is RGB frames as a camera or a decoder gives them.

    [bold]edgemamba export vim_t_midclstok_76p1acc.pth --model vim_tiny -o vim_tiny/ --precision fp16[/bold]
    """
    console = Console(stderr=True)
    axes = cast("tuple[Axis, ...]", () if dynamic in ("", "none") else tuple(dynamic.replace(" ", "").split(",")))
    size = _image_size(image_size)
    card = _volume_card(volume) if volume is not None else None
    with console.status("reading the checkpoint") as status:
        backbone, names, source = _model(
            checkpoint, model, num_classes, parse_assignments(settings or []), random_weights, size
        )
        bundle = export_bundle(
            backbone,
            out,
            image_size=size,
            volume=card,
            precision=precision,
            dynamic=axes,
            class_names=_class_names(class_names) if class_names else names,
            opset=opset,
            source=source,
            weights=weights,
            force=force,
            progress=lambda step: status.update(step),
        )
    _summary(bundle, console)


def _model(
    checkpoint: Path | None,
    name: str | None,
    num_classes: int | None,
    settings: dict[str, Any],
    random_weights: bool,
    size: int | tuple[int, ...] | None,
) -> tuple[nn.Module, tuple[str, ...], SourceCard]:
    """The model with its weights, its class names where known, and where the weights came from."""
    if num_classes is not None:
        settings["num_classes"] = num_classes
    # Position embeddings have the size of the input, so models are built for it.
    options = {**({} if size is None else {"img_size": size}), **settings}
    if random_weights:
        if checkpoint is not None or name is None:
            raise ExportError("--random-weights goes with --model NAME and without a checkpoint")
        torch.manual_seed(RANDOM_SEED)
        backbone = create_model(name, **options)
        card = SourceCard(file=f"random weights (seed {RANDOM_SEED})", sha256=weights_digest(backbone))
        return backbone, (), card
    if checkpoint is None:
        raise ExportError("name a checkpoint, or --random-weights with --model NAME")
    opened = open_checkpoint(checkpoint, name, options)
    if settings and not opened.official:
        raise ExportError(f"{checkpoint} states its own configuration; leave out {', '.join(settings)}")
    return opened.model, opened.class_names, SourceCard(file=checkpoint.name, sha256=sha256(checkpoint))


def _image_size(text: str | None) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ExportError(
            f"--image-size {text}: give pixels as 224, or height x width as 224x320, or of volumes 128x128x128"
        )
    sides = tuple(int(part) for part in parts)
    if sides[0] * sides[-1] > MOST_PIXELS:  # before a model of that size is built
        raise ExportError(f"--image-size {text}: models take up to {MOST_PIXELS} pixels")
    return sides if len(sides) > 1 else sides[0]


def _volume_card(path: Path) -> VolumeCard:
    try:
        return VolumeCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ExportError(f"--volume {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ExportError(f"--volume {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--class-names {path}: {error}") from None
    if path.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ExportError(f"--class-names {path}: not JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExportError(f"--class-names {path}: a JSON list of strings is needed")
    return tuple(names)


def _summary(bundle: Bundle, console: Console) -> None:
    """What was written, and the command that comes next."""
    manifest = bundle.manifest
    path = bundle.path / MODEL
    nodes = onnx.load(path, load_external_data=False).graph.node
    scans = sum(node.op_type == OP_TYPE for node in nodes)
    shape = " x ".join(map(str, manifest.input.shape))
    console.print(
        f"[bold]{bundle.path}[/bold]: {manifest.model.name}, {manifest.precision}, opset {manifest.opset}",
        highlight=False,
    )
    console.print(
        f"  {MODEL}  {path.stat().st_size / 2**20:.1f} MiB, {len(nodes)} nodes, {scans} of them {OP_TYPE}",
        highlight=False,
    )
    console.print(
        f"  input   {manifest.input.name}: {manifest.input.dtype} {shape} ({'RGB' if manifest.volume is None else 'normalised'})",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"  next    edgemamba verify {bundle.path}", highlight=False, soft_wrap=True)
