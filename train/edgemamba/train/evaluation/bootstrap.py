"""Intervals of the area under the ROC curve by resampling (B. Efron, Annals of Statistics 7:1, 1979; percentiles)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

#: Resamples, where nobody asks for another number.
DEFAULT_RESAMPLES = 1000
# Resamples x pictures x classes beyond which nobody is made to wait unasked: some ten seconds.
_MOST_UNASKED = 10**8
# Weights held at a time: 32 MB.
_CHUNK = 4 * 10**6

Interval = tuple[float, float]


def affordable(pictures: int, classes: int) -> int:
    """The number of resamples to make unasked: :data:`DEFAULT_RESAMPLES`, or none where they would take minutes."""
    return DEFAULT_RESAMPLES if DEFAULT_RESAMPLES * pictures * classes <= _MOST_UNASKED else 0


def auc_intervals(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    groups: Sequence[str | None] | None,
    *,
    resamples: int,
    seed: int,
) -> tuple[Interval, list[Interval]]:
    """95 % intervals of the macro AUC, and of each class's one-against-rest AUC.

    Pictures are drawn within their classes; where groups (patients) are known, whole groups are drawn, because pictures of
    one patient are not independent. Resamples without a class leave it out.

    Args:
        probabilities: (N, C).
        labels: (N,).
        groups: of each picture; None stands alone.
        resamples: how many; 0 gives intervals of NaN.
        seed: of the draw.
    """
    classes = probabilities.shape[1]
    parts = [
        np.stack([weighted_auc(weights, probabilities[:, c], labels == c) for c in range(classes)], axis=1)
        for weights in _draw(labels, groups, resamples, np.random.default_rng(seed))
    ]
    areas = np.concatenate([np.empty((0, classes)), *parts])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of classes that no resample has
        return _interval(np.nanmean(areas, axis=1)), [_interval(column) for column in areas.T]


def weighted_auc(
    weights: NDArray[np.float64], scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Areas under the ROC curves of many resamples of the same scores at once.

    The share of the pairs of a positive and a negative picture that are in the right order, ties counting one half
    (H. B. Mann and D. R. Whitney, 1947). A thousand calls of torchmetrics, which knows no weights here, take seconds even
    for a dozen pictures; a test holds the two against each other.

    Args:
        weights: (R, N), how often each picture was drawn.
        scores: (N,).
        positive: (N,).

    Returns:
        (R,); NaN where only one kind was drawn.
    """
    order = np.argsort(scores)
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    drawn = weights[:, order]
    right = np.add.reduceat(drawn * positive[order], starts, axis=1)
    wrong = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong / 2
    with np.errstate(invalid="ignore"):
        areas: NDArray[np.float64] = (below * right).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))
    return areas


def _draw(
    labels: NDArray[np.int64], groups: Sequence[str | None] | None, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """How often each picture is drawn: (some resamples, N), until there are ``resamples``."""
    if groups is None:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        names = [f"picture {index}" if group is None else f"group {group}" for index, group in enumerate(groups)]
        _, cluster = np.unique(names, return_inverse=True)
    step = max(1, _CHUNK // len(labels))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        if groups is None:
            weights = np.empty((count, len(labels)))
            for found in members:
                weights[:, found] = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), count)
            yield weights
        else:
            clusters = cluster.max() + 1
            yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), count)[:, cluster].astype(np.float64)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(values, (0.025, 0.975)) if len(values) else (np.nan, np.nan)
    return float(low), float(high)
