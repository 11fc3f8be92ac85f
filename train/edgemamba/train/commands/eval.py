"""The verb ``edgemamba eval``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgemamba.runtime.bundle import MODEL, sha256
from edgemamba.runtime.errors import CheckpointError, DataError
from edgemamba.runtime.provenance import provenance
from edgemamba.train.commands.assignments import parse_assignments
from edgemamba.train.commands.eval_console import show, verdict
from edgemamba.train.data import ImageDataset, open_dataset
from edgemamba.train.evaluation.candidates import (
    EngineCandidate,
    TorchCandidate,
    is_bundle,
    open_bundle,
    open_model,
)
from edgemamba.train.evaluation.running import Evaluation, Request, Which, evaluate
from edgemamba.train.evaluation.sheet import draw_sheet
from edgemamba.train.evaluation.thresholds import DEFAULT_RULES, Rule, Thresholds
from edgemamba.train.evaluation.writing import REPORT, prepare, write_predictions, write_report

_DATA = "Data"
_MODEL = "Model"
_FIGURES = "Figures"
_BARS = "Bars (exit code 1 below them)"
_MACHINE = "Machine"


def eval_(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="CKPT|BUNDLE...",
            help="A checkpoint, or the folder that `edgemamba export` wrote. Of several, engines are held against the first.",
        ),
    ],
    data: Annotated[str, typer.Option(help="A labelled data set, of any kind that `edgemamba train` takes.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.json, predictions (.csv), sheets (.png).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json on stdout.")] = False,
    part: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(help="By default test; val where there is none.", rich_help_panel=_DATA),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="As in training; by default what the checkpoint says.", rich_help_panel=_DATA),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of that division, by default the checkpoint's, and the bootstrap.", rich_help_panel=_DATA
        ),
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pictures that may be unreadable.", rich_help_panel=_DATA)
    ] = 0.01,
    model: Annotated[
        str | None, typer.Option(help="What an official checkpoint is of.", rich_help_panel=_MODEL)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of its config.", rich_help_panel=_MODEL),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Of bundles: auto, ort-cpu, tensorrt, ...; repeat for several.", rich_help_panel=_MODEL),
    ] = None,
    tta: Annotated[
        Literal["none", "flip"],
        typer.Option(
            help="flip: mean with the mirrored picture; wrong where the side matters.", rich_help_panel=_MODEL
        ),
    ] = "none",
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="0.5, youden, sensitivity=0.95 or specificity=0.95; repeat for several. Default: the first three.",
            rich_help_panel=_FIGURES,
        ),
    ] = None,
    threshold_from: Annotated[
        str | None,
        typer.Option(
            metavar="PART|JSON",
            help="What thresholds are chosen on, or an earlier evaluation.json with them. Default: val, where test is judged.",
            rich_help_panel=_FIGURES,
        ),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="Of two classes; by default the second.", rich_help_panel=_FIGURES)
    ] = None,
    ordinal: Annotated[
        bool, typer.Option("--ordinal", help="Classes are grades: kappa is quadratic.", rich_help_panel=_FIGURES)
    ] = False,
    bootstrap: Annotated[
        int | None,
        typer.Option(min=0, help="Resamples of the AUC's interval; by default 1000.", rich_help_panel=_FIGURES),
    ] = None,
    min_top1: Annotated[float | None, typer.Option(min=0, max=1, help="As 0.9.", rich_help_panel=_BARS)] = None,
    min_auc: Annotated[float | None, typer.Option(min=0, max=1, help="As 0.95.", rich_help_panel=_BARS)] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of an engine's logit, relative to max(1, |logit|); default 1e-4 (fp32), 2e-2 (fp16).",
            rich_help_panel=_BARS,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=_MACHINE)] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes.", rich_help_panel=_MACHINE)] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of an engine; 0: its choice.", rich_help_panel=_MACHINE)] = 0,
    device: Annotated[
        str, typer.Option(help="Of PyTorch: auto, cpu, cuda, cuda:1.", rich_help_panel=_MACHINE)
    ] = "auto",
) -> None:
    """Judge a model on labelled pictures: in PyTorch, as an exported engine, or both, on the very same input.

    Gives accuracy, AUC with a bootstrap interval, sensitivity and specificity at thresholds, kappa, MCC and calibration.
    Thresholds are chosen on the validation part and applied to the test part. Classes are matched by name.

    Exit code 1: a figure is below its bar, or an engine does not say what the first target says.

    [bold]edgemamba eval runs/a/checkpoints/best.ckpt bundle/ --data bloodmnist_224.npz --out report/[/bold]
    """
    rules = tuple(map(Rule.parse, threshold)) if threshold else DEFAULT_RULES
    chosen_on = _threshold_source(threshold_from)
    if tolerance is not None and not tolerance > 0:
        raise typer.BadParameter(f"--tolerance is {tolerance}; a positive number is needed")
    if out is not None:
        prepare(out)
    with ExitStack() as stack:
        candidates, sources, settings = _open(
            targets, backend or ["auto"], model, parse_assignments(set_ or []), _device(device), threads, stack
        )
        dataset = _dataset(data, settings, val_fraction, seed)
        request = Request(
            part=part,
            rules=rules,
            thresholds=chosen_on,
            positive=positive,
            ordinal=ordinal,
            resamples=bootstrap,
            seed=seed or 0,
            flip=tta == "flip",
            batch_size=batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
            tolerance=tolerance,
        )
        evaluation = _with_training_noted(_evaluate(candidates, dataset, request), settings, data)
    failures = _failures(evaluation, min_top1, min_auc)
    document = {**evaluation.to_json(), "failures": failures, "provenance": provenance()}
    for entry, source in zip(document["candidates"], sources, strict=True):
        entry["source"] = source
    if out is not None:
        _write(evaluation, document, out)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        show(evaluation, Console())
        if out is not None:
            Console().print(f"report: {out / REPORT}", markup=False, highlight=False, soft_wrap=True)
    for failure in failures:
        typer.echo(failure, err=True)
    if failures:
        raise typer.Exit(1)


def _threshold_source(text: str | None) -> Which | Thresholds | None:
    if text is None or text in ("train", "val", "test", "all"):
        return cast("Which | None", text)
    path = Path(text)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DataError(
            f"--threshold-from is {text}: a part (val) or the evaluation.json of an earlier evaluation is needed"
        ) from None
    return Thresholds.from_json(document, path.name)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta, which has no values, is none either
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _open(
    targets: list[Path],
    backends: list[str],
    model: str | None,
    options: dict[str, Any],
    device: torch.device,
    threads: int,
    stack: ExitStack,
) -> tuple[list[TorchCandidate | EngineCandidate], list[dict[str, str]], Mapping[str, Any]]:
    """Everything to be judged; what each was made from; and the training settings of the first checkpoint that has them."""
    candidates: list[TorchCandidate | EngineCandidate] = []
    paths: list[Path] = []
    sources: list[dict[str, str]] = []
    settings: Mapping[str, Any] = {}
    unused = bool(options)
    for path in targets:
        if not is_bundle(path):
            candidate, opened = open_model(path, model, options, device)
            settings = settings or opened.settings
            unused = unused and not opened.official
            candidates.append(candidate)
            sources.append({"file": path.name, "sha256": sha256(path)})
            paths.append(path)
            continue
        for backend in backends:
            judged = open_bundle(path, backend, threads)
            stack.enter_context(judged.engine)
            candidates.append(judged)
            manifest = judged.engine.bundle.manifest
            sources.append({"file": f"{path.resolve().name}/{MODEL}", "sha256": manifest.files[MODEL]})
            paths.append(path)
    if unused:
        raise CheckpointError(
            f"--set is for official checkpoints; these state their own configuration: leave out {', '.join(options)}"
        )
    _label(candidates, paths)
    return candidates, sources, settings


def _label(candidates: list[TorchCandidate | EngineCandidate], paths: list[Path]) -> None:
    """Tell candidates of one kind apart by their files, and by a number where those have one name."""
    kinds = Counter(candidate.label for candidate in candidates)
    for candidate, path in zip(candidates, paths, strict=True):
        if kinds[candidate.label] > 1:
            candidate.label = f"{candidate.label}-{path.resolve().stem}"
    names = Counter(candidate.label for candidate in candidates)
    for number, candidate in enumerate(candidates, 1):
        if names[candidate.label] > 1:
            candidate.label = f"{candidate.label}-{number}"


def _dataset(data: str, settings: Mapping[str, Any], val_fraction: float | None, seed: int | None) -> ImageDataset:
    """The data set, divided as it was in training: another division would put training pictures into its val part."""
    if val_fraction is not None:
        return open_dataset(data, val_fraction=val_fraction, seed=seed or 0)
    fold = settings.get("fold")
    return open_dataset(
        data,
        val_fraction=settings.get("val_fraction"),
        fold=tuple(fold) if fold else None,
        seed=int(settings.get("seed", 0)) if seed is None else seed,
    )


def _evaluate(
    candidates: list[TorchCandidate | EngineCandidate], dataset: ImageDataset, request: Request
) -> Evaluation:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating")
        return evaluate(candidates, dataset, request, lambda done, total: bar.update(task, completed=done, total=total))


def _with_training_noted(evaluation: Evaluation, settings: Mapping[str, Any], data: str) -> Evaluation:
    """Figures on pictures that a model was trained on say little, and must not be taken for more."""
    own = settings.get("data")
    if (
        evaluation.part not in ("train", "all")
        or not isinstance(own, str)
        or Path(own).resolve() != Path(data).resolve()
    ):
        return evaluation
    note = "the model was trained on pictures that are judged here"
    return dataclasses.replace(evaluation, notes=(*evaluation.notes, note))


def _failures(evaluation: Evaluation, min_top1: float | None, min_auc: float | None) -> list[str]:
    found = []
    for judged in evaluation.judged:
        figures = judged.figures
        if min_top1 is not None and figures.top1 < min_top1:
            found.append(f"{judged.label}: top-1 accuracy {figures.top1:.4f} is below the bar of {min_top1:g}")
        if min_auc is not None and not figures.auc >= min_auc:
            found.append(f"{judged.label}: AUC {figures.auc:.4f} is below the bar of {min_auc:g}")
    return found + [verdict(comparison) for comparison in evaluation.comparisons if not comparison.passed]


def _write(evaluation: Evaluation, document: dict[str, Any], out: Path) -> None:
    write_report(document, out)
    for judged in evaluation.judged:
        write_predictions(judged.outcome, evaluation.class_names, out / f"{judged.label}.csv")
        title = f"{judged.label} on {evaluation.data}, {evaluation.part}"
        draw_sheet(judged.outcome, judged.figures, title, out / f"{judged.label}.png")
