"""Whether two segmentations say the same of every pixel or voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemamba.export.parity import Agreement, Tolerance


def compare_masks(candidate: NDArray[np.generic], reference: NDArray[np.generic], tolerance: Tolerance) -> Agreement:
    """Compare the classes that two sets of logits (B, num_classes, ...) choose, voxel by voxel.

    Returns:
        ``top1``: the share of voxels that agree, ties counted as agreement. ``disagreements`` and ``ties`` are samples:
        those of which more than ``1 - tolerance.top1`` of the voxels differ, and those where a tie decided some.
    """
    wrong, tied, shared = [], [], []
    for got, want in zip(candidate, reference, strict=True):
        truth = np.asarray(want, np.float64).reshape(len(want), -1)
        value = np.asarray(got, np.float64).reshape(truth.shape)
        best, expected = value.argmax(axis=0), truth.argmax(axis=0)
        voxels = np.arange(truth.shape[1])
        bound = tolerance.bound(truth)
        margin = truth[expected, voxels] - truth[best, voxels]
        different = best != expected
        # As of classes: two logits that are closer than both bounds together cannot be told apart.
        tie = different & (margin <= bound[expected, voxels] + bound[best, voxels]) & np.isfinite(value).all(axis=0)
        wrong.append(float((different & ~tie).mean()))
        tied.append(bool(tie.any()))
        shared.append(_shared_best(value, truth))
    share = 1 - float(np.mean(wrong)) if wrong else 1.0
    return Agreement(
        top1=share,
        top5=float(np.mean(shared)) if shared else 1.0,
        disagreements=tuple(i for i, part in enumerate(wrong) if part > 1 - tolerance.top1),
        ties=tuple(i for i, any_tie in enumerate(tied) if any_tie),
        passed=share >= tolerance.top1,
    )


def _shared_best(value: NDArray[np.float64], truth: NDArray[np.float64], count: int = 5) -> float:
    """Mean share of the reference's five best classes (all, where there are fewer) that the candidate's five best hold."""
    if len(truth) <= count:
        return 1.0
    chosen = np.zeros((2, *truth.shape), bool)
    for row, logits in enumerate((value, truth)):
        best = np.argpartition(-logits, count - 1, axis=0)[:count]
        np.put_along_axis(chosen[row], best, True, axis=0)
    return float((chosen[0] & chosen[1]).sum(axis=0).mean()) / count
