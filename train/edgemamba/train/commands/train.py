"""The verb ``edgemamba train``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.preprocessing import MOST_PIXELS
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
from edgemamba.train.cross_validation import cross_validate
from edgemamba.train.data import open_dataset
from edgemamba.train.data.sheet_console import check_data
from edgemamba.train.data.transforms import Augmentation
from edgemamba.train.metrics import wilson_interval
from edgemamba.train.recipes import list_recipes, load_recipe
from edgemamba.train.recipes.layers import lay_settings
from edgemamba.train.training import TrainingResult
from edgemamba.train.training import train as run_training

_DATA = "Data"
_FINE_TUNING = "Fine-tuning"

# Options that are named otherwise than the fields that they set. Those that set none are not in the settings at all.
_FIELDS = {
    "opt": "optimizer",
    "sched": "scheduler",
    "set_": "config",
    "compile_": "compile",
    "augment": "augmentation.enabled",
    **{name: f"augmentation.{name}" for name in Augmentation.model_fields if name != "enabled"},
}
_NO_FIELDS = frozenset({"recipe", "list_recipes_", "print_settings", "resume", "folds", "inspect_data", "as_json"})
_NO_DATA = "--data is needed: a folder tree, a MedMNIST .npz, shards (.tar), or a table of files"


def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="A registered model; `edgemamba models` lists them. A recipe may name one.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder tree, a MedMNIST .npz, a table of files, or WebDataset shards.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.yaml", help="Settings to begin with; options given here stand above them."),
    ] = None,
    list_recipes_: Annotated[bool, typer.Option("--list-recipes", help="List the recipes, and stop.")] = False,
    print_settings: Annotated[
        bool, typer.Option("--print-settings", help="Show all settings and where each comes from, and stop.")
    ] = False,
    out: Out = None,
    epochs: Annotated[int, typer.Option()] = 100,
    resume: Resume = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Where there is no validation part: share of each class held out, patients kept together."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Cross-validate: so many runs in OUT/fold_1, ..., patients kept together.", rich_help_panel=_DATA
        ),
    ] = None,
    fold: Annotated[
        str | None, typer.Option(metavar="K/N", help="Run only fold K of N, e.g. 1/5.", rich_help_panel=_DATA)
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
    inspect_data: Annotated[
        bool,
        typer.Option(
            "--inspect-data", help="Show what the data hold and what is wrong, and stop.", rich_help_panel=_DATA
        ),
    ] = False,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels.", rich_help_panel=MODEL)
    ] = None,
    set_: Fields = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Start from these weights, official or own.", rich_help_panel=MODEL)
    ] = None,
    drop_path: Annotated[float | None, typer.Option(help="Stochastic depth.", rich_help_panel=MODEL)] = None,
    batch_size: BatchSize = 64,
    accumulate: Annotated[
        int, typer.Option(help="Batches that make one update, as if they were one.", rich_help_panel=OPTIMISATION)
    ] = 1,
    lr: PeakRate = 5e-4,
    lr_batch: Annotated[
        int | None,
        typer.Option(help="Pictures of an update that --lr is for; it scales linearly.", rich_help_panel=OPTIMISATION),
    ] = None,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 0.05,
    opt: Optimiser = "adamw",
    betas: Annotated[
        str | None, typer.Option(metavar="A,B", help="Of the optimiser.", rich_help_panel=OPTIMISATION)
    ] = None,
    opt_eps: Annotated[float | None, typer.Option(help="Of the optimiser.", rich_help_panel=OPTIMISATION)] = None,
    sched: Schedule = "cosine",
    warmup_epochs: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 5,
    min_lr: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 1e-5,
    milestones: Annotated[
        str | None,
        typer.Option(
            metavar="E,F,...", help="Epochs at which multistep lowers the rate.", rich_help_panel=OPTIMISATION
        ),
    ] = None,
    decay_rate: Annotated[
        float, typer.Option(help="What it (and step) multiplies the rate by.", rich_help_panel=OPTIMISATION)
    ] = 0.1,
    clip_grad: Annotated[
        float, typer.Option(help="Largest norm of the gradient; 0 is off.", rich_help_panel=OPTIMISATION)
    ] = 5.0,
    label_smoothing: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 0.1,
    ema: Annotated[
        bool, typer.Option(help="Validate and keep a moving average of the weights.", rich_help_panel=OPTIMISATION)
    ] = True,
    ema_decay: Annotated[float, typer.Option(rich_help_panel=OPTIMISATION)] = 0.9998,
    monitor: Annotated[
        str, typer.Option(metavar="top1|auc|loss", help="What best.ckpt is best in.", rich_help_panel=OPTIMISATION)
    ] = "top1",
    patience: Annotated[
        int | None, typer.Option(help="End after so many epochs that were not the best.", rich_help_panel=OPTIMISATION)
    ] = None,
    class_weights: Annotated[
        str,
        typer.Option(metavar="none|balanced|A,B,...", help="Of the classes in the loss.", rich_help_panel=OPTIMISATION),
    ] = "none",
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Each layer learns at this share of the next one's rate.", rich_help_panel=_FINE_TUNING),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="N|all-but-head", help="Leave the stem and N stages as they are.", rich_help_panel=_FINE_TUNING
        ),
    ] = None,
    mixup: Annotated[float, typer.Option(help="Alpha; 0 is off.", rich_help_panel=AUGMENTATION)] = 0.0,
    cutmix: Annotated[float, typer.Option(help="Alpha; 0 is off.", rich_help_panel=AUGMENTATION)] = 0.0,
    augment: Annotated[
        bool, typer.Option(help="Whether to augment at all, mixup and cutmix aside.", rich_help_panel=AUGMENTATION)
    ] = True,
    crop_scale: Annotated[
        float, typer.Option(help="Smallest share of the area that a random crop keeps.", rich_help_panel=AUGMENTATION)
    ] = 0.25,
    hflip: LeftRightFlips = 0.5,
    vflip: UpsideDownFlips = 0.0,
    color_jitter: Annotated[float, typer.Option(rich_help_panel=AUGMENTATION)] = 0.2,
    auto_augment: Annotated[
        str | None,
        typer.Option(help="A policy of timm's, e.g. rand-m9-mstd0.5-inc1.", rich_help_panel=AUGMENTATION),
    ] = None,
    random_erasing: Annotated[float, typer.Option(help="Probability.", rich_help_panel=AUGMENTATION)] = 0.0,
    precision: Precision = "32",
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Annotated[int, typer.Option(help="Machines, under torchrun.", rich_help_panel=MACHINE)] = 1,
    strategy: Annotated[
        str,
        typer.Option(metavar="auto|ddp|fsdp", help="Whole models on the devices, or shares.", rich_help_panel=MACHINE),
    ] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Translate the model with torch.compile.", rich_help_panel=MACHINE)
    ] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Save last.ckpt within epochs this often; 0 is off.", rich_help_panel=MACHINE)
    ] = 10,
    workers: Annotated[int, typer.Option(help="Decoding processes of each device.", rich_help_panel=MACHINE)] = 2,
    seed: Annotated[int, typer.Option(rich_help_panel=MACHINE)] = 0,
    limit_train_batches: FewBatches = None,
    as_json: AsJson = False,
) -> None:
    """Train a backbone for classification.

    The folder of the run gets checkpoints/best.ckpt and last.ckpt, metrics.csv, curves.png, summary.json, config.json and
    TensorBoard events. best.ckpt holds all that `edgemamba export` needs. Ctrl-C saves last.ckpt after the running step;
    the same command with `--resume auto` goes on with the very next batch.

    Data: DATA/train/CLASS/*.png beside DATA/val (and DATA/test), or DATA/CLASS/*.png, of which a fifth of each class is held
    out; a MedMNIST .npz; a .csv or .parquet with the columns path,label[,split][,patient][,frame]; or WebDataset shards
    (a folder of .tar, or train-{000..019}.tar). What is wrong with them is said at the start, or by --inspect-data.

    A recipe sets many options at once, as a paper has them (`--list-recipes`); options given beside it stand above it, and
    `--print-settings` shows what comes out. docs/training.md tells more.

    Example: edgemamba train --model medmamba_t --data bloodmnist_224.npz --epochs 100 --batch-size 64

    Example: edgemamba train --recipe finetune --model vim_tiny --checkpoint vim_t_midclstok_76p1acc.pth --data data/ --folds 5
    """
    if list_recipes_:
        print_recipes(as_json)
        return
    if inspect_data:
        show_data(given_fields(context), as_json)
        return
    layers = lay_settings(given_fields(context), recipe)
    if print_settings:
        if as_json:
            print(json.dumps(layers.summary(), indent=2))
        else:
            layers.print(Console())
        return
    settings = layers.settings
    if not settings.data:
        raise TrainingError(_NO_DATA)
    console = Console(stderr=True)
    if folds is not None:
        summary = cross_validate(settings, folds, resume=resume, console=console)
        if summary is not None and as_json:
            print(json.dumps(summary))
        return
    result = run_training(settings, resume=resume, console=console)
    if result is None:
        return
    if settings.patience is not None and len(result.history) < settings.epochs:
        console.print(
            f"stopped early: {settings.patience} epochs without a better {settings.monitor}",
            highlight=False,
            soft_wrap=True,
        )
    report(console, result)
    if as_json:
        print(json.dumps(result.summary()))


def show_data(given: dict[str, Any], as_json: bool) -> None:
    """Show the data sheet of a data set, divided as a run with these settings would divide it; no model is needed.

    Raises:
        DataError: a run would refuse it.
        TrainingError: no data set is named.
    """
    if not given.get("data"):
        raise TrainingError(_NO_DATA)
    dataset = open_dataset(
        given["data"], **{name: given[name] for name in ("val_fraction", "fold", "seed") if name in given}
    )
    sheet = check_data(dataset, Console(stderr=True), strict=given.get("strict_data", False), listing=True)
    if as_json:
        print(json.dumps(sheet.summary()))


def given_fields(context: typer.Context) -> dict[str, Any]:
    """What the user said, as fields of the settings; defaults are not among it.

    Raises:
        TrainingError: a value that is written as text cannot be read.
    """
    read: dict[str, Callable[[Any], Any]] = {
        "config": parse_assignments,
        "image_size": parse_size,
        "fold": lambda text: parse_numbers("fold", text, "/", int, 2),
        "betas": lambda text: parse_numbers("betas", text, ",", float, 2),
        "milestones": lambda text: parse_numbers("milestones", text, ",", float),
        "clip_grad": lambda norm: norm or None,
    }
    given = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        # By name: newer typers bring a click of their own.
        if name not in _NO_FIELDS and source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            field = _FIELDS.get(name, name)
            given[field] = read[field](value) if field in read else value
    return given


def print_recipes(as_json: bool) -> None:
    """All recipes, with their first source."""
    recipes = [load_recipe(name) for name in list_recipes()]
    if as_json:
        print(json.dumps([recipe.model_dump(mode="json") for recipe in recipes], indent=2))
        return
    table = Table("recipe", "model", "what it is", box=None, header_style="bold", pad_edge=False)
    for recipe in recipes:
        table.add_row(recipe.name, recipe.model or "any", recipe.title)
    Console().print(table)


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


def parse_size(text: str) -> tuple[int, int]:
    """``224`` or ``192x256`` (height x width) to two numbers.

    Raises:
        TrainingError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise TrainingError(f"--image-size is {text!r}; a side in pixels (224) or height x width (192x256) is needed")
    height, width = int(sides[0]), int(sides[-1])
    if height * width > MOST_PIXELS:  # before a model of that size is built
        raise TrainingError(f"--image-size is {text!r}; models take up to {MOST_PIXELS} pixels")
    return height, width


def parse_numbers(
    option: str, text: str, separator: str, kind: type[int] | type[float], count: int | None = None
) -> tuple[float, ...]:
    """``0.9,0.999`` or ``1/5`` to numbers.

    Raises:
        TrainingError: they are no numbers, or not so many.
    """
    try:
        numbers = tuple(kind(part) for part in text.split(separator))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise TrainingError(
            f"--{option} is {text!r}; {count or 'some'} numbers with {separator!r} between them are needed"
        )
    return numbers
