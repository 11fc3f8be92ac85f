"""Whether a model is right as often as it says: calibration errors, Brier score, and the bins of a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_calibration_error

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Of two classes, the probability of the positive one is held against how often it is true; of more, the probability of
    the chosen class against how often it is right (C. Guo et al., ICML 2017).

    Attributes:
        ece, mce: expected and maximum calibration error over :data:`BINS` bins of equal width.
        brier: mean squared error of the probabilities (G. W. Brier, Monthly Weather Review 78:1, 1950): of two classes that
            of the positive one (0..1), of more the sum over the classes (0..2).
        counts, confidence, accuracy: float64 (:data:`BINS`,), pictures in each bin, their mean probability, and how many of
            them it held for; NaN in bins without pictures.
    """

    ece: float
    mce: float
    brier: float
    counts: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def calibration(probabilities: NDArray[np.float64], labels: NDArray[np.int64], positive: int | None) -> Calibration:
    """Of probabilities (N, C) and labels (N,); ``positive`` is the positive class of two, None for more classes."""
    if positive is not None:
        stated, held = probabilities[:, positive], labels == positive
        brier = float(np.mean((stated - held) ** 2))
    else:
        stated, held = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        brier = float(np.mean(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)))
    # A chosen class's probability and whether it is right is a binary problem too.
    # torchmetrics would give a probability of exactly 1 a bin of its own.
    stated = np.minimum(stated, 1 - 1e-12)
    pair = torch.from_numpy(stated), torch.from_numpy(held.astype(np.int64))
    ece, mce = (float(binary_calibration_error(*pair, n_bins=BINS, norm=norm)) for norm in ("l1", "max"))
    # As torchmetrics bins: an edge belongs to the bin above it.
    place = np.digitize(stated, np.linspace(0, 1, BINS + 1)) - 1
    counts = np.bincount(place, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, stated, minlength=BINS) / counts
        accuracy = np.bincount(place, held, minlength=BINS) / counts
    return Calibration(ece, mce, brier, counts, confidence, accuracy)
