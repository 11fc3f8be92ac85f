"""Thresholds of a probability: chosen on one set by a rule, applied to another, and what they do there.

A threshold that is chosen on the pictures it is judged by flatters the model. So every threshold carries the name of the set
that it was chosen on, and every figure at a threshold carries it on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_roc

from edgemamba.runtime.errors import DataError
from edgemamba.train.metrics import wilson_interval

_TARGETS = ("sensitivity", "specificity")


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen.

    Attributes:
        kind: ``fixed``; ``youden``, the largest sensitivity + specificity - 1 (W. J. Youden, Cancer 3:32, 1950);
            ``sensitivity``, the largest specificity where sensitivity is at least the target (and of points with the same
            specificity the most sensitive); ``specificity``, the reverse.
        target: the fixed threshold, or what is to be reached.
    """

    kind: str
    target: float = math.nan

    @classmethod
    def parse(cls, text: str) -> Rule:
        """``0.5``, ``youden``, ``sensitivity=0.95`` or ``specificity=0.9``.

        Raises:
            DataError: it is none of these.
        """
        kind, _, number = text.partition("=") if "=" in text else (text, "", "")
        if kind == "youden" and not number:
            return cls("youden")
        try:
            target = float(number if kind in _TARGETS else kind)
        except ValueError:
            target = math.nan
        if not 0 <= target <= 1 or (number and kind not in _TARGETS):
            raise DataError(
                f"--threshold is {text!r}; a probability (0.5), youden, sensitivity=0.95 or specificity=0.95 is needed"
            )
        return cls(kind if kind in _TARGETS else "fixed", target)

    def __str__(self) -> str:
        if self.kind == "youden":
            return "youden"
        return f"{self.target:g}" if self.kind == "fixed" else f"{self.kind}={self.target:g}"

    def choose(self, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
        """The threshold for probabilities (N,) of which ``positive`` (N,) says the truth: positive is what reaches it.

        A chosen threshold lies half way between two neighbouring scores, so that an engine whose probabilities differ in the
        last digits decides alike. None where a choice needs both kinds of pictures and there is only one.
        """
        if self.kind == "fixed":
            return self.target
        if positive.all() or not positive.any():
            return None
        curve = binary_roc(torch.from_numpy(scores), torch.from_numpy(positive.astype(np.int64)))
        false, true, cuts = (array.double().numpy() for array in curve)
        # The first point of the curve calls nothing positive; the next ones begin at the highest score.
        cuts = np.append(math.nextafter(1.0, 2.0), (cuts[1:] + np.append(cuts[2:], 0.0)) / 2)
        # torchmetrics divides in float32, where 19 of 20 is not 0.95. Of points that are as good by the rule, the best is taken.
        true, false = np.round(true, 6), np.round(false, 6)
        if self.kind == "youden":
            best = int(np.argmax(np.round(true - false, 6)))
        elif self.kind == "sensitivity":
            least = false[true >= np.round(self.target, 6)].min()
            best = int(np.flatnonzero(false == least)[-1])
        else:
            most = true[false <= np.round(1 - self.target, 6)].max()
            best = int(np.flatnonzero(true == most)[0])
        return float(cuts[best])


#: What is reported where nobody asks for anything else.
DEFAULT_RULES = (Rule("fixed", 0.5), Rule("youden"), Rule("sensitivity", 0.95))


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that were chosen.

    Attributes:
        chosen_on: the set: ``val``, ``test``, a file.
        values: by rule, then by the name of the class that is told from the rest.
    """

    chosen_on: str
    values: Mapping[str, Mapping[str, float]]

    @classmethod
    def choose(
        cls,
        rules: Sequence[Rule],
        probabilities: NDArray[np.float64],
        labels: NDArray[np.int64],
        classes: Mapping[int, str],
        chosen_on: str,
    ) -> Thresholds:
        """Choose by each rule, for each of ``classes`` (index to name), on probabilities (N, C) and labels (N,)."""
        values: dict[str, dict[str, float]] = {}
        for rule in rules:
            found = {name: rule.choose(probabilities[:, index], labels == index) for index, name in classes.items()}
            values[str(rule)] = {name: value for name, value in found.items() if value is not None}
        return cls(chosen_on, values)

    @classmethod
    def from_json(cls, document: Any, origin: str) -> Thresholds:
        """Those of an earlier ``evaluation.json``.

        Raises:
            DataError: it has none, or they are no probabilities.
        """
        try:
            stored = document["thresholds"]["values"]
            values = {
                str(Rule.parse(rule)): {str(name): float(value) for name, value in chosen.items()}
                for rule, chosen in stored.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{origin} holds no thresholds; an evaluation.json of `edgemamba eval` is needed") from None
        for value in (value for chosen in values.values() for value in chosen.values()):
            if not 0 <= value <= math.nextafter(1.0, 2.0):
                raise DataError(f"{origin} has the threshold {value}, which is no probability")
        return cls(origin, values)


@dataclass(frozen=True)
class Share:
    """``right`` of ``count``, with the 95 % interval of Wilson; NaN where the count is nought."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.count) if self.count else (math.nan, math.nan)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does: pictures of class ``class_name`` told from the rest.

    Attributes:
        rule, threshold, chosen_on: as of :class:`Thresholds`.
        tp, fp, tn, fn: true and false positives and negatives.
    """

    class_name: str
    rule: str
    threshold: float
    chosen_on: str
    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def at(
        cls,
        threshold: float,
        scores: NDArray[np.float64],
        positive: NDArray[np.bool_],
        *,
        class_name: str,
        rule: str,
        chosen_on: str,
    ) -> OperatingPoint:
        """Count. A picture is called positive where its score (N,) reaches the threshold."""
        called = scores >= threshold
        counts = [int((called & positive).sum()), int((called & ~positive).sum())]
        counts += [int((~called & ~positive).sum()), int((~called & positive).sum())]
        return cls(class_name, rule, threshold, chosen_on, *counts)

    @property
    def sensitivity(self) -> Share:
        return Share(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> Share:
        return Share(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> Share:
        """Positive predictive value, at the prevalence of these pictures."""
        return Share(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> Share:
        """Negative predictive value, at the prevalence of these pictures."""
        return Share(self.tn, self.tn + self.fn)

    @property
    def f1(self) -> float:
        denominator = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / denominator if denominator else math.nan
