"""One picture of an evaluation: curves, confusion, calibration and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from edgemamba.runtime.errors import SinkError
from edgemamba.train.evaluation.calibration import BINS
from edgemamba.train.evaluation.figures import Figures, judged_classes
from edgemamba.train.evaluation.predicting import Outcome

# More classes make no legible legend, and more no legible numbers in a matrix.
_MOST_NAMED, _MOST_NUMBERED = 10, 12
_LONGEST = 18


def draw_sheet(outcome: Outcome, figures: Figures, title: str, path: Path) -> None:
    """Write a PNG: ROC and precision-recall curves (with the thresholds' points), confusion matrix, reliability diagram and
    histogram of the scores.

    Raises:
        SinkError: the file cannot be written.
    """
    # The object interface: pyplot would ask for a display and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    axes = figure.subplots(2, 3)
    figure.suptitle(title, fontsize=11)
    curves, labels = _curves(outcome, figures), len(figures.class_names) <= _MOST_NAMED
    _draw_roc(axes[0, 0], curves, figures, labels)
    _draw_precision_recall(axes[0, 1], curves, figures, labels)
    _draw_confusion(axes[0, 2], figures)
    _draw_reliability(axes[1, 0], figures)
    _draw_scores(axes[1, 1], outcome, figures)
    _draw_points(axes[1, 2], figures)
    try:
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise SinkError(f"{path} cannot be written: {error.strerror}") from None


def _curves(outcome: Outcome, figures: Figures) -> list[tuple[int, str, Any, Any]]:
    """Of each class that is told from the rest and can be: its index and name, and its scores and truth as tensors."""
    found = []
    positive = None if figures.positive is None else figures.class_names.index(figures.positive)
    for index, name in judged_classes(figures.class_names, positive).items():
        truth = outcome.labels == index
        if truth.any() and not truth.all():
            scores = torch.from_numpy(outcome.probabilities[:, index].copy())
            found.append((index, name, scores, torch.from_numpy(truth.astype(np.int64))))
    return found


def _draw_roc(axes: Any, curves: list[tuple[int, str, Any, Any]], figures: Figures, labels: bool) -> None:
    for index, name, scores, truth in curves:
        false, true, _ = binary_roc(scores, truth)
        area = f"{_short(name)} {figures.class_auc[index]:.3f}"
        axes.step(false, true, where="post", label=area if labels else None, linewidth=1.2)
    axes.plot((0, 1), (0, 1), color="grey", linewidth=0.7, linestyle=":")
    if figures.positive is not None:
        for point in figures.points:
            x, y = 1 - point.specificity.value, point.sensitivity.value
            axes.plot(x, y, "o", markersize=6, fillstyle="none", label=f"{point.rule}: t = {point.threshold:.3g}")
    low, high = figures.auc_interval
    interval = f" (95 % {low:.3f} to {high:.3f})" if np.isfinite(low) else ""
    axes.set_title(f"ROC, {'' if figures.positive else 'macro '}AUC {figures.auc:.4f}{interval}", fontsize=10)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(axes, "lower right")


def _draw_precision_recall(axes: Any, curves: list[tuple[int, str, Any, Any]], figures: Figures, labels: bool) -> None:
    for index, name, scores, truth in curves:
        precision, recall, _ = binary_precision_recall_curve(scores, truth)
        area = f"{_short(name)} {figures.classes[index].average_precision:.3f}"
        axes.step(recall, precision, where="post", label=area if labels else None, linewidth=1.2)
    if figures.positive is not None:
        share = figures.classes[figures.class_names.index(figures.positive)].support / figures.count
        axes.axhline(share, color="grey", linewidth=0.7, linestyle=":", label=f"prevalence {share:.3f}")
    axes.set_title("precision-recall, average precision", fontsize=10)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(axes, "lower left")


def _draw_confusion(axes: Any, figures: Figures) -> None:
    matrix = figures.confusion
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"confusion, top-1 {figures.top1:.2%} of {figures.count}", fontsize=10)
    axes.set(xlabel="predicted", ylabel="truth")
    if len(matrix) > _MOST_NUMBERED:
        return
    names = [_short(name) for name in figures.class_names]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for (row, column), number in np.ndenumerate(matrix):
        axes.text(
            column,
            row,
            str(number),
            ha="center",
            va="center",
            fontsize=8,
            color="w" if share[row, column] > 0.5 else "k",
        )


def _draw_reliability(axes: Any, figures: Figures) -> None:
    found = figures.calibration
    edges = np.linspace(0, 1, BINS + 1)
    axes.bar(edges[:-1], np.nan_to_num(found.accuracy), 1 / BINS, align="edge", edgecolor="w", alpha=0.75)
    axes.plot((0, 1), (0, 1), color="grey", linewidth=0.7, linestyle=":")
    shown = found.counts > 0
    axes.plot(found.confidence[shown], found.accuracy[shown], "k.", markersize=4)
    axes.set_title(f"calibration, ECE {found.ece:.3f}, MCE {found.mce:.3f}, Brier {found.brier:.3f}", fontsize=10)
    stated = f"probability of {_short(figures.positive)}" if figures.positive else "probability of the chosen class"
    axes.set(xlabel=stated, ylabel="share that it held for", xlim=(0, 1), ylim=(0, 1))


def _draw_scores(axes: Any, outcome: Outcome, figures: Figures) -> None:
    bins = np.linspace(0, 1, 26)
    if figures.positive is not None:
        index = figures.class_names.index(figures.positive)
        groups = {name: outcome.probabilities[outcome.labels == i, index] for i, name in enumerate(figures.class_names)}
        axes.set_xlabel(f"probability of {_short(figures.positive)}")
        for point in figures.points:
            axes.axvline(point.threshold, color="k", linewidth=0.8, linestyle=":")
    else:
        stated, right = outcome.probabilities.max(axis=1), outcome.probabilities.argmax(axis=1) == outcome.labels
        groups = {"right": stated[right], "wrong": stated[~right]}
        axes.set_xlabel("probability of the chosen class")
    for name, values in groups.items():
        axes.hist(values, bins, alpha=0.6, label=f"{_short(name)} ({len(values)})")
    axes.set_title("scores", fontsize=10)
    axes.set(ylabel="pictures", xlim=(0, 1), yscale="symlog")
    _legend(axes, "upper center")


def _draw_points(axes: Any, figures: Figures) -> None:
    """Sensitivity and specificity with their intervals: at each threshold of a binary problem, else of each class."""
    if figures.positive is not None:
        rows = [(f"{p.rule}\n({_origin(p.chosen_on)})", p.sensitivity, p.specificity) for p in figures.points]
        axes.set_title(f"{_short(figures.positive)}, by threshold", fontsize=10)
    else:
        rows = [(_short(c.name), c.sensitivity, c.specificity) for c in figures.classes[:_MOST_NUMBERED]]
        axes.set_title("each class told from the rest, by argmax", fontsize=10)
    for offset, name, marker in ((-0.12, "sensitivity", "o"), (0.12, "specificity", "s")):
        shares = [row[1] if name == "sensitivity" else row[2] for row in rows]
        values = np.array([share.value for share in shares])
        bounds = np.array([share.interval for share in shares]).T
        errors = np.maximum(np.abs(bounds - values), 0)
        axes.errorbar(
            values, np.arange(len(rows)) + offset, xerr=errors, fmt=marker, markersize=4, capsize=3, label=name
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), xlabel="95 % intervals of Wilson")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    _legend(axes, "best")


def _origin(chosen_on: str) -> str:
    return chosen_on if chosen_on == "fixed" else f"from {_short(chosen_on)}"


def _legend(axes: Any, place: str) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place, fontsize=8)


def _short(name: str | None) -> str:
    """A name that fits; matplotlib would read dollar signs as formulas."""
    text = (name or "").replace("$", r"\$")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
