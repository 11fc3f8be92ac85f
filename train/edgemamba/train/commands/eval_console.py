"""What `edgemamba eval` prints."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from edgemamba.train.evaluation.comparison import Comparison
from edgemamba.train.evaluation.figures import Figures
from edgemamba.train.evaluation.running import Evaluation
from edgemamba.train.evaluation.thresholds import OperatingPoint, Share

# More classes, and more pictures on which two candidates differ, are in the report only.
_MOST_CLASSES, _MOST_FLIPPED = 30, 5


def show(evaluation: Evaluation, console: Console) -> None:
    """Figures side by side, then classes or thresholds of the first candidate, then verdicts and notes."""
    first = evaluation.judged[0].figures
    _line(console, f"{evaluation.data}, {evaluation.part}: {first.count} pictures, {len(first.class_names)} classes")
    console.print(_figures(evaluation))
    if first.positive is not None:
        console.print(_points(evaluation))
    elif len(first.class_names) <= _MOST_CLASSES:
        console.print(_classes(evaluation.judged[0].label, first))
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
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for judged in evaluation.judged:
        table.add_column(judged.label, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Figures], str]] = {
        "top-1 accuracy": lambda f: f"{f.top1:.2%} {_interval(f.top1_interval, '.1%')}",
        "AUC" if evaluation.judged[0].figures.positive else "AUC, macro": lambda f: (
            f"{_number(f.auc)} {_interval(f.auc_interval, '.3f')}".rstrip()
        ),
        "average precision, macro": lambda f: _number(f.average_precision),
        "balanced accuracy": lambda f: f"{f.balanced_accuracy:.2%}",
        "F1, macro": lambda f: _number(f.f1),
        "Cohen's kappa"
        + (", quadratic" if evaluation.judged[0].figures.kappa_weights == "quadratic" else ""): lambda f: _number(
            f.kappa
        ),
        "MCC": lambda f: _number(f.mcc),
        "calibration error (ECE)": lambda f: _number(f.calibration.ece),
        "largest calibration error (MCE)": lambda f: _number(f.calibration.mce),
        "Brier score": lambda f: _number(f.calibration.brier),
        "cross entropy, nats": lambda f: _number(f.loss),
    }
    for name, figure in rows.items():
        table.add_row(name, *(figure(judged.figures) for judged in evaluation.judged))
    return table


def _points(evaluation: Evaluation) -> Table:
    figures = evaluation.judged[0].figures
    table = Table(box=box.SIMPLE_HEAD, title=f"{figures.positive} told from the rest", title_justify="left")
    several = len(evaluation.judged) > 1
    for name in (["candidate"] if several else []) + ["threshold", "chosen on"]:
        table.add_column(name, no_wrap=True)
    for name in ("at", "sensitivity", "specificity", "PPV", "NPV", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    for judged in evaluation.judged:
        for point in judged.figures.points:
            table.add_row(*([judged.label] if several else []), *_point(point))
    return table


def _point(point: OperatingPoint) -> list[str]:
    shares = [_share(point.sensitivity), _share(point.specificity)]
    values = [f"{point.ppv.value:.1%}", f"{point.npv.value:.1%}", _number(point.f1)]
    return [point.rule, point.chosen_on, f"{point.threshold:.4f}", *shares, *values]


def _classes(label: str, figures: Figures) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"each class told from the rest ({label})", title_justify="left")
    table.add_column("class", no_wrap=True)
    rules = list(dict.fromkeys(point.rule for point in figures.points))
    for name in ("pictures", "AUC", "AP", "most probable", *rules):
        table.add_column(name, justify="right", no_wrap=True)
    for found in figures.classes:
        at = {point.rule: point for point in figures.points if point.class_name == found.name}
        table.add_row(
            found.name,
            str(found.support),
            f"{_number(found.auc)} {_interval(found.auc_interval, '.3f')}".rstrip(),
            _number(found.average_precision),
            f"{found.sensitivity.value:.1%} / {found.specificity.value:.1%}",
            *(f"{at[r].sensitivity.value:.1%} / {at[r].specificity.value:.1%}" if r in at else "" for r in rules),
        )
    table.caption = "sensitivity / specificity of the most probable class, and at thresholds"
    if figures.points:
        table.caption += f" chosen on {next((p.chosen_on for p in figures.points if p.chosen_on != 'fixed'), 'none')}"
    table.caption_justify = "left"
    return table


def _share(share: Share) -> str:
    return f"{share.value:.1%} {_interval(share.interval, '.0%')}"


def _interval(interval: tuple[float, float], style: str) -> str:
    low, high = interval
    return f"({low:{style}} to {high:{style}})" if math.isfinite(low) else ""


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
