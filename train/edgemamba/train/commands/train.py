"""The verb ``edgemamba train``."""

from __future__ import annotations

import ast
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.metrics import wilson_interval
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import TrainingResult
from edgemamba.train.training import train as run_training

_DATA = "Data"
_MODEL = "Model"
_OPTIMISATION = "Optimisation"
_AUGMENTATION = "Augmentation"
_MACHINE = "Machine"


def train(
    model: Annotated[str, typer.Option(help="A registered model; `edgemamba models` lists them.")],
    data: Annotated[str, typer.Option(help="A folder tree, a MedMNIST .npz, or a .csv of DICOM or other files.")],
    out: Annotated[str | None, typer.Option(help="Folder of the run; runs/MODEL by default.")] = None,
    epochs: Annotated[int, typer.Option()] = 100,
    resume: Annotated[
        str | None, typer.Option(metavar="auto|CKPT", help="Go on with a run: from its last.ckpt, or from a path.")
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Hold this share of each class out for validation, patients kept together.")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Draw each class equally often in training.", rich_help_panel=_DATA)
    ] = False,
    cache: Annotated[
        str, typer.Option(metavar="none|ram|DIR", help="Keep decoded pictures.", rich_help_panel=_DATA)
    ] = "none",
    cache_gb: Annotated[float, typer.Option(help="Of the cache, at most.", rich_help_panel=_DATA)] = 8.0,
    strict_data: Annotated[
        bool,
        typer.Option("--strict-data", help="Refuse pictures or patients in two parts.", rich_help_panel=_DATA),
    ] = False,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels.", rich_help_panel=_MODEL)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the model's config.", rich_help_panel=_MODEL),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Start from these weights, official or own.", rich_help_panel=_MODEL)
    ] = None,
    drop_path: Annotated[float | None, typer.Option(help="Stochastic depth.", rich_help_panel=_MODEL)] = None,
    batch_size: Annotated[int, typer.Option(help="Of each device.", rich_help_panel=_OPTIMISATION)] = 64,
    accumulate: Annotated[
        int, typer.Option(help="Batches that make one update, as if they were one.", rich_help_panel=_OPTIMISATION)
    ] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=_OPTIMISATION)] = 5e-4,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=_OPTIMISATION)] = 0.05,
    opt: Annotated[str, typer.Option(help="Any optimiser of timm's.", rich_help_panel=_OPTIMISATION)] = "adamw",
    sched: Annotated[str, typer.Option(help="Any schedule of timm's.", rich_help_panel=_OPTIMISATION)] = "cosine",
    warmup_epochs: Annotated[float, typer.Option(rich_help_panel=_OPTIMISATION)] = 5,
    min_lr: Annotated[float, typer.Option(rich_help_panel=_OPTIMISATION)] = 1e-5,
    clip_grad: Annotated[
        float, typer.Option(help="Largest norm of the gradient; 0 is off.", rich_help_panel=_OPTIMISATION)
    ] = 5.0,
    label_smoothing: Annotated[float, typer.Option(rich_help_panel=_OPTIMISATION)] = 0.1,
    ema: Annotated[
        bool, typer.Option(help="Validate and keep a moving average of the weights.", rich_help_panel=_OPTIMISATION)
    ] = True,
    ema_decay: Annotated[float, typer.Option(rich_help_panel=_OPTIMISATION)] = 0.9998,
    monitor: Annotated[
        str, typer.Option(metavar="top1|auc|loss", help="What best.ckpt is best in.", rich_help_panel=_OPTIMISATION)
    ] = "top1",
    mixup: Annotated[float, typer.Option(help="Alpha; 0 is off.", rich_help_panel=_AUGMENTATION)] = 0.0,
    cutmix: Annotated[float, typer.Option(help="Alpha; 0 is off.", rich_help_panel=_AUGMENTATION)] = 0.0,
    augment: Annotated[
        bool, typer.Option(help="Whether to augment at all, mixup and cutmix aside.", rich_help_panel=_AUGMENTATION)
    ] = True,
    crop_scale: Annotated[
        float, typer.Option(help="Smallest share of the area that a random crop keeps.", rich_help_panel=_AUGMENTATION)
    ] = 0.25,
    hflip: Annotated[float, typer.Option(help="Probability of left-right flips.", rich_help_panel=_AUGMENTATION)] = 0.5,
    vflip: Annotated[float, typer.Option(help="Of upside-down flips.", rich_help_panel=_AUGMENTATION)] = 0.0,
    color_jitter: Annotated[float, typer.Option(rich_help_panel=_AUGMENTATION)] = 0.2,
    auto_augment: Annotated[
        str | None,
        typer.Option(help="A policy of timm's, e.g. rand-m9-mstd0.5-inc1.", rich_help_panel=_AUGMENTATION),
    ] = None,
    random_erasing: Annotated[float, typer.Option(help="Probability.", rich_help_panel=_AUGMENTATION)] = 0.0,
    precision: Annotated[str, typer.Option(metavar="32|bf16-mixed|16-mixed", rich_help_panel=_MACHINE)] = "32",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu, ...", rich_help_panel=_MACHINE)] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or which (0,2).", rich_help_panel=_MACHINE)] = "auto",
    nodes: Annotated[int, typer.Option(help="Machines, under torchrun.", rich_help_panel=_MACHINE)] = 1,
    strategy: Annotated[
        str,
        typer.Option(metavar="auto|ddp|fsdp", help="Whole models on the devices, or shares.", rich_help_panel=_MACHINE),
    ] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Translate the model with torch.compile.", rich_help_panel=_MACHINE)
    ] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Save last.ckpt within epochs this often; 0 is off.", rich_help_panel=_MACHINE)
    ] = 10,
    workers: Annotated[int, typer.Option(help="Decoding processes of each device.", rich_help_panel=_MACHINE)] = 2,
    seed: Annotated[int, typer.Option(rich_help_panel=_MACHINE)] = 0,
    limit_train_batches: Annotated[
        int | None, typer.Option(help="Stop epochs after so many batches (smoke tests).", rich_help_panel=_MACHINE)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Train a backbone for classification.

    The folder of the run gets checkpoints/best.ckpt and last.ckpt, metrics.csv, curves.png, summary.json, config.json and
    TensorBoard events. best.ckpt holds all that `edgemamba export` needs. Ctrl-C saves last.ckpt after the running step;
    the same command with `--resume auto` goes on with the very next batch.

    Data: DATA/train/CLASS/*.png beside DATA/val (and DATA/test), or DATA/CLASS/*.png, of which a fifth of each class is held
    out; a MedMNIST .npz; or a .csv with the columns path,label[,split][,patient][,frame].

    Example: edgemamba train --model medmamba_t --data bloodmnist_224.npz --epochs 100 --batch-size 64
    """
    settings = TrainingSettings.parse(
        model=model,
        data=data,
        out=out or f"runs/{model}",
        epochs=epochs,
        config=parse_assignments(set_ or []),
        val_fraction=val_fraction,
        balanced=balanced,
        cache=cache,
        cache_gb=cache_gb,
        strict_data=strict_data,
        image_size=parse_size(image_size) if image_size else None,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=opt,
        lr=lr,
        weight_decay=weight_decay,
        scheduler=sched,
        warmup_epochs=warmup_epochs,
        min_lr=min_lr,
        clip_grad=clip_grad or None,
        drop_path=drop_path,
        augmentation={
            "enabled": augment,
            "crop_scale": crop_scale,
            "hflip": hflip,
            "vflip": vflip,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "random_erasing": random_erasing,
        },
        mixup=mixup,
        cutmix=cutmix,
        label_smoothing=label_smoothing,
        ema=ema,
        ema_decay=ema_decay,
        monitor=monitor,
        precision=precision,
        seed=seed,
        checkpoint=checkpoint,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        compile=compile_,
        checkpoint_minutes=checkpoint_minutes,
        workers=workers,
        limit_train_batches=limit_train_batches,
    )
    console = Console(stderr=True)
    result = run_training(settings, resume=resume, console=console)
    if result is None:
        return
    report(console, result)
    if as_json:
        print(json.dumps(result.summary()))


def report(console: Console, result: TrainingResult) -> None:
    """Say what the best checkpoint scores, and where things are."""
    for part, scores in (("validation", result.val), ("test", result.test)):
        if scores is not None:
            low, high = wilson_interval(int(scores.confusion.trace()), scores.count)
            console.print(
                f"{part}: top-1 {scores.top1:.2%} (95 % interval {low:.1%} to {high:.1%}, n = {scores.count}), "
                f"macro AUC {scores.auc:.4f}, loss {scores.loss:.4f}",
                highlight=False,
                soft_wrap=True,
            )
    if result.unreadable:
        console.print(f"{len(result.unreadable)} pictures could not be read and were skipped", highlight=False)
    console.print(
        f"{result.folder}: {len(result.history)} epochs in {result.seconds:.0f} s; next: edgemamba export {result.best} -o "
        f"{result.folder / 'bundle'}",
        highlight=False,
        soft_wrap=True,
    )


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["dims=(24,48)", "d_state=8"]`` to a dictionary; values are Python literals, or else text.

    Raises:
        TrainingError: one has no ``=``.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not key or not equals:
            raise TrainingError(f"--set {assignment}: KEY=VALUE is needed, e.g. --set depths=2,2,4,2")
        try:
            parsed[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            parsed[key.strip()] = text.strip()
    return parsed


def parse_size(text: str) -> tuple[int, int]:
    """``224`` or ``192x256`` (height x width) to two numbers.

    Raises:
        TrainingError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise TrainingError(f"--image-size is {text!r}; a side in pixels (224) or height x width (192x256) is needed")
    return int(sides[0]), int(sides[-1])
