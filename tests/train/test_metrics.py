"""Figures of a classifier: each against another way to the same number, and what happens where a figure is not defined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_precision,
    binary_recall,
    binary_sensitivity_at_specificity,
    binary_specificity,
    binary_specificity_at_sensitivity,
)

from edgemamba.runtime.errors import DataError
from edgemamba.train.evaluation.bootstrap import auc_intervals, weighted_auc
from edgemamba.train.evaluation.calibration import calibration
from edgemamba.train.evaluation.figures import Figures, measure
from edgemamba.train.evaluation.predicting import Outcome
from edgemamba.train.evaluation.thresholds import DEFAULT_RULES, OperatingPoint, Rule, Thresholds
from edgemamba.train.metrics import ClassificationMetrics, wilson_interval

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def outcome(
    count: int, classes: int, seed: int = 0, *, sure: float = 1.5, labels: NDArray[np.int64] | None = None
) -> Outcome:
    """Noisy logits that know something of the labels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count) if labels is None else labels
    logits = rng.normal(size=(count, classes)) + sure * np.eye(classes)[truth]
    return Outcome(logits.astype(np.float32), truth, tuple(f"{i}.png" for i in range(count)), None, {})


def figures_of(found: Outcome, names: str, *, positive: int | None = None, ordinal: bool = False) -> Figures:
    thresholds = Thresholds.choose(
        DEFAULT_RULES, found.probabilities, found.labels, dict(enumerate(names)), "these pictures"
    )
    return measure(found, names, thresholds, positive=positive, ordinal=ordinal, resamples=50)


def test_metrics_leave_out_classes_without_pictures() -> None:
    metrics = ClassificationMetrics(3)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [1.5, 1.0, 0.0], [3.0, 0.0, 0.0]])
    metrics.update(logits, torch.tensor([0, 1, 1, 0]))
    scores = metrics.compute()
    assert scores.top1 == 0.75
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.auc == 1.0  # class 0: {2, 3} above {0, 1.5}; class 1: probabilities .24, .04 below .50, .33
    assert scores.class_auc[:2].tolist() == [1.0, 1.0]
    assert math.isnan(scores.class_auc[2])
    metrics.reset()
    metrics.update(logits[:1], torch.tensor([0]))
    assert np.isnan(metrics.compute().auc)


def test_auc_of_logits_that_look_like_probabilities() -> None:
    """By probability the positive picture is above the other; by its raw logit, which torchmetrics would take, below."""
    metrics = ClassificationMetrics(2)
    metrics.update(torch.tensor([[0.1, 0.4], [0.9, 0.5]]), torch.tensor([1, 0]))
    assert metrics.compute().auc == 1.0


def test_wilson_interval() -> None:
    """Against the closed form at the edges, and a value from Newcombe, Statistics in Medicine 17:857 (1998), table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = wilson_interval(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_against_scikit_learn(classes: int) -> None:
    found = outcome(300, classes, seed=classes)
    names = "abcd"[:classes]
    figures = figures_of(found, names, positive=1 if classes == 2 else None, ordinal=True)
    truth, chosen = found.labels, found.logits.argmax(axis=1)
    one_hot = np.eye(classes)[truth]
    expected = {
        "loss": sklearn_metrics.log_loss(truth, found.probabilities),
        "top1": (chosen == truth).mean(),
        "auc": sklearn_metrics.roc_auc_score(one_hot, found.probabilities, average="macro"),
        "average_precision": sklearn_metrics.average_precision_score(one_hot, found.probabilities, average="macro"),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, chosen),
        "f1": sklearn_metrics.f1_score(truth, chosen, average="macro"),
        "kappa": sklearn_metrics.cohen_kappa_score(truth, chosen, weights="quadratic"),
        "mcc": sklearn_metrics.matthews_corrcoef(truth, chosen),
    }
    assert {name: getattr(figures, name) for name in expected} == pytest.approx(expected, abs=1e-6)
    brier = ((found.probabilities - one_hot) ** 2).sum(axis=1).mean() / (2 if classes == 2 else 1)
    assert figures.calibration.brier == pytest.approx(brier)
    for index, of_class in enumerate(figures.classes):
        one = torch.from_numpy(chosen == index), torch.from_numpy((truth == index).astype(np.int64))
        assert of_class.sensitivity.value == pytest.approx(float(binary_recall(*one)))
        assert of_class.specificity.value == pytest.approx(float(binary_specificity(*one)))
    low, high = figures.auc_interval
    assert low < figures.auc < high


def test_calibration_errors_are_those_of_the_diagram() -> None:
    """torchmetrics gives the errors and no bins: what is drawn must add up to them, sure answers (exactly 1) included."""
    found = outcome(400, 3, sure=4.0)
    found.logits[:5] *= 100
    for positive, pair in ((None, found.probabilities), (1, found.probabilities[:, 1:])):
        result = calibration(found.probabilities, found.labels, positive)
        gap = np.abs(result.accuracy - result.confidence)
        assert result.counts.sum() == len(pair)
        assert result.ece == pytest.approx(np.nansum(gap * result.counts) / len(pair), abs=1e-6)
        assert result.mce == pytest.approx(np.nanmax(gap), abs=1e-6)


def test_thresholds_against_torchmetrics() -> None:
    found = outcome(200, 2)
    scores, positive = found.probabilities[:, 1], found.labels == 1
    pair = torch.from_numpy(scores.copy()), torch.from_numpy(positive.astype(np.int64))

    def at(rule: str) -> OperatingPoint:
        threshold = Rule.parse(rule).choose(scores, positive)
        assert threshold is not None
        return OperatingPoint.at(threshold, scores, positive, class_name="b", rule=rule, chosen_on="val")

    point = at("sensitivity=0.95")
    assert point.sensitivity.value >= 0.95
    assert point.specificity.value == pytest.approx(float(binary_specificity_at_sensitivity(*pair, 0.95)[0]))
    point = at("specificity=0.9")
    assert point.specificity.value >= 0.9
    assert point.sensitivity.value == pytest.approx(float(binary_sensitivity_at_specificity(*pair, 0.9)[0]))
    false, true, _ = sklearn_metrics.roc_curve(positive, scores, drop_intermediate=False)
    point = at("youden")
    assert point.sensitivity.value + point.specificity.value - 1 == pytest.approx((true - false).max())
    point = at("0.5")
    assert point.ppv.value == pytest.approx(float(binary_precision(*pair)))
    assert point.f1 == pytest.approx(sklearn_metrics.f1_score(positive, scores >= 0.5))
    assert (point.tp + point.fp + point.tn + point.fn, point.sensitivity.count) == (200, int(positive.sum()))


def test_thresholds_lie_between_scores_and_need_both_kinds() -> None:
    scores, positive = np.array([0.1, 0.3, 0.6, 0.9]), np.array([False, False, True, True])
    assert Rule.parse("youden").choose(scores, positive) == pytest.approx(0.45)
    assert Rule.parse("sensitivity=1").choose(scores, positive) == pytest.approx(0.45)
    assert Rule.parse("youden").choose(scores, np.ones(4, bool)) is None
    assert Rule.parse("0.2").choose(scores, np.ones(4, bool)) == 0.2
    # Where a negative picture is surest of all, only calling nothing positive is perfectly specific.
    threshold = Rule.parse("specificity=1").choose(np.array([0.2, 1.0]), np.array([True, False]))
    assert threshold is not None
    assert threshold > 1


@pytest.mark.parametrize(
    "text", ["", "best", "1.5", "-0.1", "nan", "sensitivity", "sensitivity=2", "auc=0.5", "youden=1"]
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="--threshold is"):
        Rule.parse(text)


def test_bootstrap_against_torchmetrics() -> None:
    """A resample by weights has the area of the resample spelt out; ties count one half."""
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.4
    weights = rng.multinomial(40, np.full(40, 1 / 40), 5)
    areas = weighted_auc(weights.astype(np.float64), scores, positive)
    for row, area in zip(weights, areas, strict=True):
        drawn = np.repeat(np.arange(40), row)
        pair = torch.from_numpy(scores[drawn]), torch.from_numpy(positive[drawn].astype(np.int64))
        assert area == pytest.approx(float(binary_auroc(*pair)), abs=1e-6)
    assert math.isnan(weighted_auc(np.ones((1, 3)), np.arange(3.0), np.ones(3, bool))[0])


def test_bootstrap_is_seeded_and_keeps_patients_together() -> None:
    found = outcome(120, 2, sure=1.0)
    options = {"resamples": 400, "seed": 1}
    alone, classes = auc_intervals(found.probabilities, found.labels, None, **options)
    assert (alone, classes) == auc_intervals(found.probabilities, found.labels, None, **options)
    assert classes[0] == pytest.approx(classes[1])
    # Each picture four times over adds no knowledge where the four are of one patient, and seems to where they are not.
    four = np.repeat(np.arange(120), 4)
    probabilities, labels = found.probabilities[four], found.labels[four]
    (naive_low, naive_high), _ = auc_intervals(probabilities, labels, None, **options)
    (low, high), _ = auc_intervals(probabilities, labels, [f"p{i}" for i in four], **options)
    assert naive_high - naive_low < 0.7 * (high - low)
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.2)


def test_figures_that_are_not_defined_are_null() -> None:
    """One class alone has no curve, no kappa and no choice of a threshold; JSON says so instead of NaN."""
    figures = figures_of(outcome(5, 3, labels=np.zeros(5, np.int64)), "abc")
    document = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    assert document["auc"] is None
    assert document["auc_interval"] == [None, None]
    assert [entry["support"] for entry in document["classes"]] == [5, 0, 0]
    assert document["classes"][1]["sensitivity"] == {"right": 0, "count": 0, "value": None, "interval": [None, None]}
    assert {point["rule"] for point in document["points"]} == {"0.5"}
    assert document["confusion"][0] == figures.confusion[0].tolist()
