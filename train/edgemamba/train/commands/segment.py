"""The verb ``edgemamba segment``: train a segmenter."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.volumes.card import Normalisation
from edgemamba.train.commands.assignments import parse_assignments
from edgemamba.train.commands.options import (
    AUGMENTATION,
    MACHINE,
    MODEL,
    OPTIMISATION,
    Accelerator,
    AsJson,
    BatchSize,
    Devices,
    FewBatches,
    Fields,
    LeftRightFlips,
    Optimiser,
    Out,
    PeakRate,
    Precision,
    Resume,
    Schedule,
    UpsideDownFlips,
)
from edgemamba.train.segmentation.scoring import SegmentationFigures
from edgemamba.train.segmentation.settings import SegmentationSettings
from edgemamba.train.segmentation.training import SegmentationResult, train_segmenter

_VOLUMES = "Volumes"


def segment(
    model: Annotated[str, typer.Option(help="A backbone, or `segmamba` for volumes; see `edgemamba models`.")],
    data: Annotated[str, typer.Option(help="A folder with images/ and masks/, or train/, val/ and test/ with both.")],
    out: Out = None,
    epochs: Annotated[int, typer.Option()] = 100,
    resume: Resume = None,
    val_fraction: Annotated[float | None, typer.Option(help="Hold this share of the pairs out for validation.")] = None,
    head: Annotated[str, typer.Option(metavar="fpn|upernet", help="Of backbones.", rich_help_panel=MODEL)] = "fpn",
    head_dim: Annotated[int | None, typer.Option(help="Channels of the head.", rich_help_panel=MODEL)] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW|DxHxW", help="Of the input, or of a volume's patches.", rich_help_panel=MODEL),
    ] = None,
    set_: Fields = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Start from these weights, a segmenter's or a classifier's.", rich_help_panel=MODEL),
    ] = None,
    sampling: Annotated[
        str,
        typer.Option(
            metavar="resize|patches",
            help="Pictures resized to the input, or windows of it at their own resolution.",
            rich_help_panel=MODEL,
        ),
    ] = "resize",
    patches_per_case: Annotated[int, typer.Option(help="In an epoch.", rich_help_panel=MODEL)] = 1,
    overlap: Annotated[float, typer.Option(help="Of sliding windows.", rich_help_panel=MODEL)] = 0.5,
    modalities: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Of the channels, in order.", rich_help_panel=_VOLUMES)
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="D,H,W", help="Resample to voxels of so many mm.", rich_help_panel=_VOLUMES)
    ] = None,
    normalise: Annotated[
        str,
        typer.Option(
            metavar="zscore_nonzero|zscore|none|LOW,HIGH", help="LOW,HIGH: a window.", rich_help_panel=_VOLUMES
        ),
    ] = "zscore_nonzero",
    batch_size: BatchSize = 8,
    lr: PeakRate = 5e-4,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 0.05,
    opt: Optimiser = "adamw",
    sched: Schedule = "cosine",
    warmup_epochs: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 5,
    drop_path: Annotated[float | None, typer.Option(help="Of backbones.", rich_help_panel=OPTIMISATION)] = None,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="N|all-but-head", help="Stages left as they are.", rich_help_panel=OPTIMISATION),
    ] = None,
    ema: Annotated[bool, typer.Option(help="Validate and keep a moving average.", rich_help_panel=OPTIMISATION)] = True,
    ema_decay: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 0.9998,
    monitor: Annotated[
        str, typer.Option(metavar="dice|loss", help="What best.ckpt is best in.", rich_help_panel=OPTIMISATION)
    ] = "dice",
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better one.", rich_help_panel=OPTIMISATION)
    ] = None,
    augment: Annotated[bool, typer.Option(help="Whether to augment at all.", rich_help_panel=AUGMENTATION)] = True,
    hflip: LeftRightFlips = 0.5,
    vflip: UpsideDownFlips = 0.0,
    rotate: Annotated[float, typer.Option(help="Largest angle, in degrees.", rich_help_panel=AUGMENTATION)] = 15.0,
    scale: Annotated[float, typer.Option(help="Largest change of size.", rich_help_panel=AUGMENTATION)] = 0.2,
    intensity: Annotated[
        float, typer.Option(help="Largest change of contrast and brightness.", rich_help_panel=AUGMENTATION)
    ] = 0.2,
    noise: Annotated[float, typer.Option(rich_help_panel=AUGMENTATION)] = 0.05,
    precision: Precision = "32",
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    workers: Annotated[int, typer.Option(help="Loading processes of each device.", rich_help_panel=MACHINE)] = 2,
    seed: Annotated[int, typer.Option(rich_help_panel=MACHINE)] = 0,
    limit_train_batches: FewBatches = None,
    as_json: AsJson = False,
) -> None:
    """Train a segmenter: any backbone with a head for pictures, or SegMamba for volumes.

    The folder of the run gets what `edgemamba train` leaves. summary.json has Dice and the 95th percentile of the Hausdorff
    distance of each class on the validation and test parts, at the masks' own resolution, case by case.

    Data: DATA/images and DATA/masks with files of the same names, of which a fifth is held out, or both in DATA/train, val
    and test. Pictures or DICOM files with masks of class indices (PNG; 255 is ignored); or volumes (NIfTI, a folder of a
    DICOM series, or of a NIfTI file a modality) with NIfTI masks. DATA/classes.txt names the classes, the background first.

    Example: edgemamba segment --model vmamba_t --head upernet --data polyps/ --size 352 --checkpoint vssm_tiny.pth

    Example: edgemamba segment --model segmamba --data tumours/ --size 128 --patches-per-case 4 --batch-size 2
    """
    settings = SegmentationSettings.parse(
        model=model,
        data=data,
        out=out or f"runs/{model}",
        epochs=epochs,
        val_fraction=val_fraction,
        head=None if model.lower() == "segmamba" else head,
        head_dim=head_dim,
        size=parse_extents(size, axes=3 if model.lower() == "segmamba" else 2) if size else None,
        config=parse_assignments(set_ or []),
        checkpoint=checkpoint,
        sampling=sampling,
        patches_per_case=patches_per_case,
        overlap=overlap,
        modalities=tuple(modalities.split(",")) if modalities else None,
        spacing=parse_spacing(spacing) if spacing else None,
        normalisation=parse_normalisation(normalise),
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        optimizer=opt,
        scheduler=sched,
        warmup_epochs=warmup_epochs,
        drop_path=drop_path,
        freeze=freeze,
        ema=ema,
        ema_decay=ema_decay,
        monitor=monitor,
        patience=patience,
        augmentation={
            "enabled": augment,
            "hflip": hflip,
            "vflip": vflip,
            "rotate": rotate,
            "scale": scale,
            "intensity": intensity,
            "noise": noise,
        },
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        workers=workers,
        seed=seed,
        limit_train_batches=limit_train_batches,
    )
    console = Console(stderr=True)
    result = train_segmenter(settings, resume=resume, console=console)
    if result is None:
        return
    report(console, result)
    if as_json:
        print(json.dumps(result.summary()))


def report(console: Console, result: SegmentationResult) -> None:
    """Say what the best checkpoint scores, and where things are."""
    for part, figures in (("validation", result.val), ("test", result.test)):
        if figures is not None:
            for line in describe(part, figures):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{result.folder}: {len(result.history)} epochs in {result.seconds:.0f} s; next: edgemamba export {result.best} -o "
        f"{result.folder / 'bundle'}",
        highlight=False,
        soft_wrap=True,
    )


def describe(part: str, figures: SegmentationFigures) -> list[str]:
    """A line for the part, and one for each class."""
    lines = [
        f"{part}: mean Dice {figures.dice:.4f}, HD95 {figures.hd95:.2f} {figures.unit}, {len(figures.cases)} cases"
    ]
    for name, one in figures.classes.items():
        odd = {"missed in": one.missed, "invented in": one.invented, "absent in": one.absent}
        notes = "".join(f", {what} {count}" for what, count in odd.items() if count)
        lines.append(
            f"  {name}: Dice {one.dice:.4f} (n = {one.judged}), HD95 {one.hd95:.2f} (n = {one.measured}){notes}"
        )
    return lines


def parse_extents(text: str, axes: int) -> tuple[int, ...]:
    """``352``, ``352x480`` or ``64x96x96`` to one number for each axis.

    Raises:
        TrainingError: it is none of these.
    """
    sides = text.lower().split("x")
    if len(sides) not in (1, axes) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        example = "352 or 352x480 (height x width)" if axes == 2 else "128 or 64x96x96 (depth x height x width)"
        raise TrainingError(f"--size is {text!r}; {example} is needed")
    return tuple(int(side) for side in (sides * axes)[:axes])


def parse_normalisation(text: str) -> dict[str, Any]:
    """``zscore`` or a window ``-160,240`` to the fields of :class:`Normalisation`.

    Raises:
        TrainingError: it is neither.
    """
    fields: dict[str, Any] = {"kind": text}
    if "," in text:
        limits = _numbers("--normalise", text)
        if len(limits) != 2:
            raise TrainingError(f"--normalise is {text!r}; a window has two ends, LOW,HIGH")
        fields = {"kind": "window", "low": limits[0], "high": limits[1]}
    try:
        Normalisation.model_validate(fields)
    except ValidationError as error:
        raise TrainingError(
            f"--normalise is {text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
    return fields


def parse_spacing(text: str) -> tuple[float, ...]:
    """``3,1,1`` to three numbers, in mm.

    Raises:
        TrainingError: it is none.
    """
    steps = _numbers("--spacing", text)
    if len(steps) != 3:
        raise TrainingError(f"--spacing is {text!r}; three numbers of mm are needed, as 3,1,1 (depth, height, width)")
    return steps


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"{option} is {text!r}; numbers with commas between them are needed") from None
