"""Everything that a classifier is judged by, from its logits and the truth."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_average_precision,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multiclass_recall,
)

from edgemamba.train.evaluation.bootstrap import Interval, affordable, auc_intervals
from edgemamba.train.evaluation.calibration import Calibration, calibration
from edgemamba.train.evaluation.predicting import Outcome
from edgemamba.train.evaluation.thresholds import OperatingPoint, Rule, Share, Thresholds
from edgemamba.train.metrics import ClassificationMetrics, Scores, wilson_interval


@dataclass(frozen=True)
class ClassFigures:
    """One class told from the rest.

    Attributes:
        name: of the class.
        support: pictures of it.
        auc, auc_interval: area under the ROC curve with its 95 % bootstrap interval.
        average_precision: area under the precision-recall curve, as a step function.
        sensitivity, specificity: of the decision for the most probable class.
    """

    name: str
    support: int
    auc: float
    auc_interval: Interval
    average_precision: float
    sensitivity: Share
    specificity: Share


@dataclass(frozen=True)
class Figures(Scores):
    """Scores, and what medical classification asks for besides.

    Attributes:
        class_names: in the order of the confusion matrix.
        positive: name of the positive class of two; None for more classes.
        top1_interval: 95 %, Wilson.
        auc_interval: of the macro AUC, 95 %, by ``resamples`` bootstrap resamples from ``seed``; NaN where there are none.
        average_precision: mean over the classes of which there are pictures.
        balanced_accuracy: mean sensitivity of those classes.
        f1: mean over the classes that are there or were predicted.
        kappa: Cohen's, with ``kappa_weights``: ``quadratic`` for ordered classes, else ``none``.
        mcc: Matthews' correlation coefficient (of more classes: Gorodkin's).
        calibration: see :class:`~edgemamba.train.evaluation.calibration.Calibration`.
        classes: each told from the rest.
        points: what thresholds do: of the positive class of two, or of each of more.
    """

    class_names: tuple[str, ...]
    positive: str | None
    top1_interval: Interval
    auc_interval: Interval
    resamples: int
    seed: int
    average_precision: float
    balanced_accuracy: float
    f1: float
    kappa: float
    kappa_weights: str
    mcc: float
    calibration: Calibration
    classes: tuple[ClassFigures, ...]
    points: tuple[OperatingPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able; None for what is not defined, such as the AUC of a class without pictures."""
        plain: dict[str, Any] = jsonable(self)
        return plain


def positive_class(class_names: Sequence[str], positive: str | None = None) -> int | None:
    """Index of the positive class of two, by default the second; None where there are more classes.

    Raises:
        ValueError: ``positive`` is none of the names.
    """
    if len(class_names) != 2:
        return None
    return 1 if positive is None else list(class_names).index(positive)


def judged_classes(class_names: Sequence[str], positive: int | None) -> dict[int, str]:
    """The classes that thresholds are for: the positive one of two, all of more."""
    return {index: name for index, name in enumerate(class_names) if positive in (None, index)}


def measure(
    outcome: Outcome,
    class_names: Sequence[str],
    thresholds: Thresholds,
    *,
    positive: int | None = None,
    ordinal: bool = False,
    resamples: int | None = None,
    seed: int = 0,
) -> Figures:
    """Judge logits.

    Args:
        outcome: with the classes in the order of ``class_names``.
        class_names: C names.
        thresholds: to apply.
        positive: index of the positive class of two; of :func:`positive_class`.
        ordinal: the classes are grades, in their order: disagreement is weighed by the square of the distance.
        resamples: of the bootstrap; 0 for none; by default as many as take seconds (see :func:`affordable`).
        seed: of the bootstrap.
    """
    count, classes = len(outcome.labels), len(class_names)
    truth, probabilities = torch.from_numpy(outcome.labels), outcome.probabilities
    scores = torch.from_numpy(probabilities)
    basis = ClassificationMetrics(classes, all_ranks=False)
    basis.update(torch.from_numpy(outcome.logits).double(), truth)
    base = basis.compute()
    support = base.confusion.sum(axis=1)
    resamples = affordable(count, classes) if resamples is None else resamples
    macro, intervals = auc_intervals(probabilities, outcome.labels, outcome.groups, resamples=resamples, seed=seed)
    weights: Literal["quadratic", "none"] = "quadratic" if ordinal else "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes without pictures, which are left out here
        precisions = multiclass_average_precision(scores, truth, classes, average=None).where(
            torch.from_numpy(support > 0), math.nan
        )
        chosen = scores.argmax(dim=1)
        recalls = multiclass_recall(chosen, truth, classes, average=None)[torch.from_numpy(support > 0)]
        f1 = multiclass_f1_score(chosen, truth, classes)
        kappa = multiclass_cohen_kappa(chosen, truth, classes, weights=weights)
        mcc = multiclass_matthews_corrcoef(chosen, truth, classes)
    by_class = [
        ClassFigures(
            name,
            int(support[index]),
            float(base.class_auc[index]),
            intervals[index],
            float(precisions[index]),
            *_decided(base, index),
        )
        for index, name in enumerate(class_names)
    ]
    points = [
        OperatingPoint.at(
            thresholds.values[rule][name],
            probabilities[:, index],
            outcome.labels == index,
            class_name=name,
            rule=rule,
            chosen_on="fixed" if Rule.parse(rule).kind == "fixed" else thresholds.chosen_on,
        )
        for rule in thresholds.values
        for index, name in judged_classes(class_names, positive).items()
        if name in thresholds.values[rule]
    ]
    return Figures(
        **{field.name: getattr(base, field.name) for field in dataclasses.fields(base)},
        class_names=tuple(class_names),
        positive=None if positive is None else class_names[positive],
        top1_interval=wilson_interval(int(base.confusion.trace()), count),
        auc_interval=macro,
        resamples=resamples,
        seed=seed,
        average_precision=float(precisions.nanmean()),
        balanced_accuracy=float(recalls.mean()),
        f1=float(f1),
        kappa=float(kappa),
        kappa_weights=weights,
        mcc=float(mcc),
        calibration=calibration(probabilities, outcome.labels, positive),
        classes=tuple(by_class),
        points=tuple(points),
    )


def jsonable(value: Any) -> Any:
    """Dataclasses, arrays and numbers as JSON has them: None for NaN and infinity, a share with its value and interval."""
    if isinstance(value, Share):
        return jsonable({"right": value.right, "count": value.count, "value": value.value, "interval": value.interval})
    if isinstance(value, OperatingPoint):
        found = {name: getattr(value, name) for name in ("sensitivity", "specificity", "ppv", "npv", "f1")}
        return {**dataclasses.asdict(value), **{name: jsonable(figure) for name, figure in found.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decided(base: Scores, index: int) -> tuple[Share, Share]:
    """Sensitivity and specificity of choosing the most probable class."""
    confusion = base.confusion
    positives, called = int(confusion[index].sum()), int(confusion[:, index].sum())
    right = int(confusion[index, index])
    negatives = base.count - positives
    return Share(right, positives), Share(negatives - (called - right), negatives)
