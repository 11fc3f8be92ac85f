"""Cross-validation: one run a fold, resumable fold by fold, and the mean of what they score."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import train

#: Of a run and of a cross-validation: written when it is complete.
SUMMARY = "summary.json"
# Numbers in a summary that say how it was made, not how good the model is.
_NO_FIGURES = frozenset({"count", "resamples", "seed"})


def cross_validate(
    settings: TrainingSettings, folds: int, *, resume: str | None = None, console: Console | None = None
) -> dict[str, Any] | None:
    """Train once for each fold, each time validating on it, in ``fold_1`` to ``fold_{folds}`` below the folder of the run.

    Args:
        settings: of every run; the folder and the fold are set here. Folds hold the same share of each class and never
            part a patient, see :class:`edgemamba.train.data.division.Division`.
        folds: how many.
        resume: ``auto`` goes on: complete folds are left as they are, one that was begun is resumed. None for a new one.
        console: for progress; by default stderr.

    Returns:
        What is in ``summary.json``, see :func:`summarise`; None on ranks other than the first.

    Raises:
        DataError: the data set cannot be divided so.
        TrainingError: as for :func:`~edgemamba.train.training.train`; a fold was run already, or with other settings.
        KeyboardInterrupt: Ctrl-C, after the running fold's ``last.ckpt`` was saved.
    """
    console = console or Console(stderr=True)
    if folds < 2:
        raise TrainingError(f"--folds is {folds}; 2 or more are needed")
    if settings.fold is not None:
        raise TrainingError("--folds runs all folds and --fold one of them; give one of the two")
    if resume not in (None, "auto"):
        raise TrainingError(f"--resume is {resume!r}; with --folds it is auto, which goes on where each fold stopped")
    runs = [
        settings.model_copy(update={"fold": (number, folds), "out": str(settings.folder / f"fold_{number}")})
        for number in range(1, folds + 1)
    ]
    begun = next((run for run in runs if run.last.exists()), None)
    if begun is not None and resume is None:
        raise TrainingError(
            f"{begun.folder} already holds a run; go on with --resume auto, or choose another folder with --out"
        )
    for number, run in enumerate(runs, start=1):
        done = run.folder / SUMMARY
        if done.is_file() and _complete(run):
            _say(console, f"{run.folder} is complete")
            continue
        _say(console, f"fold {number} of {folds}: {run.folder}")
        # It stands for a complete fold, and this one is so no longer.
        done.unlink(missing_ok=True)
        train(run, resume="auto" if run.last.exists() else None, console=console)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return None
    summary = summarise([run.folder for run in runs])
    settings.leave(SUMMARY, summary)
    print_summary(console, summary)
    _say(console, f"{settings.folder / SUMMARY}: {folds} folds")
    return summary


def summarise(folders: Sequence[Path]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample, n - 1) over complete runs of every figure that their summaries have.

    Returns:
        ``folds``: how many; ``runs``: their folders; ``val`` and ``test``: figure -> ``mean``, ``sd`` and ``values``, where a
        fold without the figure (the AUC of one class) has None and is left out of both.

    Raises:
        TrainingError: a summary is missing or damaged.
    """
    summaries = [_read(folder / SUMMARY) for folder in folders]
    return {
        "folds": len(folders),
        "runs": [str(folder) for folder in folders],
        **{part: _aggregate([summary.get(part) for summary in summaries]) for part in ("val", "test")},
    }


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """One line a figure: mean, deviation, and the folds' own."""
    table = Table("", "mean", "sd", "folds", box=None, header_style="bold", pad_edge=False)
    for part, shown in (("val", "validation"), ("test", "test")):
        for name, figure in (summary[part] or {}).items():
            values = " ".join("-" if value is None else f"{value:.4g}" for value in figure["values"])
            deviation = "-" if figure["sd"] is None else f"{figure['sd']:.2g}"
            table.add_row(f"{shown} {name}", f"{figure['mean']:.4g}", deviation, values)
    console.print(table)


@rank_zero_only
def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _read(path: Path) -> dict[str, Any]:
    """What a run has left in its folder."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TrainingError(f"{path} is missing or damaged; remove its folder to run the fold again")
    return document


def _complete(run: TrainingSettings) -> bool:
    """Whether a fold that was once complete is so for these settings; refuses one that was run with others."""
    saved = _read(run.folder / "config.json")
    run.check_same(saved)
    return int(saved.get("epochs", 0)) >= run.epochs


def _aggregate(parts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    if any(part is None for part in parts):
        return None
    scores = [_figures(part) for part in parts if part is not None]
    names = dict.fromkeys(name for score in scores for name in score)
    aggregated = {}
    for name in names:
        values = [score.get(name) for score in scores]
        known = [value for value in values if value is not None]
        aggregated[name] = {
            "mean": statistics.fmean(known),
            "sd": statistics.stdev(known) if len(known) > 1 else None,
            "values": values,
        }
    return aggregated


def _figures(part: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a summary's part, those of dictionaries in it under ``outer.inner``; lists are no figures."""
    figures: dict[str, float] = {}
    for name, value in part.items():
        if isinstance(value, Mapping):
            figures |= _figures(value, f"{prefix}{name}.")
        elif name in _NO_FIGURES or isinstance(value, bool):
            continue
        elif isinstance(value, (int, float)) and math.isfinite(value):
            figures[f"{prefix}{name}"] = float(value)
    return figures
