"""Whether an engine says what PyTorch said, picture by picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.privacy import without_uids
from edgemamba.train.evaluation.predicting import Outcome

#: Largest difference of a logit, relative to max(1, |logit|), by the weaker precision of the two (DESIGN section 6).
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


@dataclass(frozen=True)
class Comparison:
    """Two candidates on the same pictures.

    Attributes:
        reference, candidate: their labels.
        max_abs_error: largest difference of a logit.
        max_of_tolerance: the same in units of what is allowed for that logit; above 1 fails.
        tolerance: relative to max(1, |reference logit|).
        agreement: share of the pictures for which both choose the same class.
        flipped: names of the others, without UIDs.
        same_confusion: the confusion matrices are equal.
        passed: every logit is within its tolerance. Classes then differ only where the reference's two best logits are closer
            together than the tolerance can tell.
    """

    reference: str
    candidate: str
    max_abs_error: float
    max_of_tolerance: float
    tolerance: float
    agreement: float
    flipped: tuple[str, ...]
    same_confusion: bool
    passed: bool


def compare(names: tuple[str, str], reference: Outcome, candidate: Outcome, *, tolerance: float) -> Comparison:
    """Hold logits against logits.

    Args:
        names: of the two.
        reference, candidate: on the same pictures, with the same order of classes.
        tolerance: of a logit, relative to max(1, |reference logit|).

    Raises:
        DataError: one of them could read other pictures than the other.
    """
    if reference.names != candidate.names:
        raise DataError(f"{names[0]} and {names[1]} did not read the same pictures: the data set changed meanwhile")
    want, got = reference.logits.astype(np.float64), candidate.logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    error = np.where(np.isfinite(error), error, np.inf)
    worst = float((error / (tolerance * np.maximum(1, np.abs(want)))).max())
    first, second = want.argmax(axis=1), got.argmax(axis=1)
    flipped = tuple(without_uids(reference.names[index]) for index in np.flatnonzero(first != second))
    agreement = 1 - len(flipped) / len(want)
    classes = want.shape[1]
    counts, others = (
        np.bincount(reference.labels * classes + chosen, minlength=classes**2) for chosen in (first, second)
    )
    same = np.array_equal(counts, others)
    return Comparison(*names, float(error.max()), worst, tolerance, agreement, flipped, same, worst <= 1)
