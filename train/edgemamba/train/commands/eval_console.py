"""What `edgemamba eval` prints."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from edgemamba.train.evaluation.comparison import Comparison
from edgemamba.train.evaluation.figures import Figures
from edgemamba.train.evaluation.running import Evaluation, Judged
from edgemamba.train.evaluation.thresholds import Share

# More classes, and more pictures on which two candidates differ, are in the report only.
_MOST_CLASSES, _MOST_FLIPPED = 30, 5
_SHORT = {"sensitivity=0.95": "sens=0.95", "specificity=0.95": "spec=0.95"}


def show(evaluation: Evaluation, console: Console) -> None:
    """Figures side by side, then thresholds or classes, then verdicts and notes. What says what the first says is not printed
    again in detail."""
    first = evaluation.judged[0].figures
    same = {comparison.candidate for comparison in evaluation.comparisons if comparison.passed}
    _line(console, f"{evaluation.data}, {evaluation.part}: {first.count} pictures, {len(first.class_names)} classes")
    console.print(_figures(evaluation))
    for judged in evaluation.judged:
        if judged.label in same:
            continue
        if first.positive is not None:
            console.print(_points(judged))
        elif len(first.class_names) <= _MOST_CLASSES:
            console.print(_classes(judged))
    for comparison in evaluation.comparisons:
        _line(console, verdict(comparison))
    for name, reason in evaluation.unreadable.items():
        _line(console, f"skipped: {reason if name in reason else f'{name}: {reason}'}")
    if evaluation.unreadable:
        _line(console, f"{len(evaluation.unreadable)} pictures could not be read and were left out")
    for note in evaluation.notes:
        _line(console, f"note: {note}")


def verdict(comparison: Comparison) -> str:
    """One line on whether two candidates say the same."""
    same = "says what" if comparison.passed else "DIFFERS from what"
    flipped = ""
    if comparison.flipped:
        more = ", ..." if len(comparison.flipped) > _MOST_FLIPPED else ""
        flipped = f", other classes for {', '.join(comparison.flipped[:_MOST_FLIPPED])}{more}"
    return (
        f"{comparison.candidate} {same} {comparison.reference} says: largest difference of a logit "
        f"{comparison.max_abs_error:.1e}, {comparison.max_of_tolerance:.2g} of the tolerance ({comparison.tolerance:g} x max(1, "
        f"|logit|)), same class for {comparison.agreement:.2%}{flipped}; confusion matrices "
        f"{'equal' if comparison.same_confusion else 'differ'}"
    )


def _figures(evaluation: Evaluation) -> Table:
    """A column a candidate, and the first one's intervals."""
    first = evaluation.judged[0].figures
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for judged in evaluation.judged:
        table.add_column(judged.label, justify="right", no_wrap=True)
    table.add_column("95 %", no_wrap=True)
    auc = "AUC" if first.positive else "AUC, macro"
    kappa = "Cohen's kappa, quadratic" if first.kappa_weights == "quadratic" else "Cohen's kappa"
    rows: dict[str, Callable[[Figures], float]] = {
        "top-1 accuracy": lambda f: f.top1,
        auc: lambda f: f.auc,
        "average precision, macro": lambda f: f.average_precision,
        "balanced accuracy": lambda f: f.balanced_accuracy,
        "F1, macro": lambda f: f.f1,
        kappa: lambda f: f.kappa,
        "MCC": lambda f: f.mcc,
        "calibration error, mean": lambda f: f.calibration.ece,
        "calibration error, largest": lambda f: f.calibration.mce,
        "Brier score": lambda f: f.calibration.brier,
        "cross entropy, nats": lambda f: f.loss,
    }
    intervals = {"top-1 accuracy": first.top1_interval, auc: first.auc_interval}
    for name, figure in rows.items():
        low, high = intervals.get(name, (math.nan, math.nan))
        interval = f"{low:.4f} to {high:.4f}" if math.isfinite(low) else ""
        table.add_row(name, *(_number(figure(judged.figures)) for judged in evaluation.judged), interval)
    return table


def _points(judged: Judged) -> Table:
    """Of two classes: what each threshold does."""
    title = f"{judged.label}: {judged.figures.positive} told from the other class, in % (95 %)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("threshold", "chosen on"):
        table.add_column(name, no_wrap=True)
    for name in ("at", "sensitivity", "specificity", "PPV", "NPV"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in judged.figures.points:
        shares = [_share(point.sensitivity), _share(point.specificity), _percent(point.ppv), _percent(point.npv)]
        table.add_row(point.rule, point.chosen_on, f"{point.threshold:.4f}", *shares)
    return table


def _classes(judged: Judged) -> Table:
    """Of more classes: each told from the rest."""
    figures = judged.figures
    title = f"{judged.label}: each class told from the rest, sensitivity/specificity in %"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("class", max_width=16, no_wrap=True, overflow="ellipsis")
    rules = list(dict.fromkeys(point.rule for point in figures.points))
    for name in ("n", "AUC", "AP", "argmax", *(_SHORT.get(rule, rule) for rule in rules)):
        table.add_column(name, justify="right", no_wrap=True)
    for found in figures.classes:
        at = {point.rule: point for point in figures.points if point.class_name == found.name}
        decided = [found, *(at.get(rule) for rule in rules)]
        table.add_row(
            found.name,
            str(found.support),
            "-" if math.isnan(found.auc) else f"{found.auc:.3f}",
            "-" if math.isnan(found.average_precision) else f"{found.average_precision:.3f}",
            *("" if d is None else f"{_percent(d.sensitivity)}/{_percent(d.specificity)}" for d in decided),
        )
    return table


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{_percent(share)} ({low * 100:.0f}-{high * 100:.0f})" if share.count else "-"


def _percent(share: Share) -> str:
    return f"{share.value * 100:.1f}".replace("100.0", "100") if share.count else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
