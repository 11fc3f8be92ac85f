"""Metrics of a classifier: classes without pictures, and how sure an accuracy is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemamba.train.metrics import ClassificationMetrics, wilson_interval


def test_metrics_leave_out_classes_without_pictures() -> None:
    metrics = ClassificationMetrics(3)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [1.5, 1.0, 0.0], [3.0, 0.0, 0.0]])
    metrics.update(logits, torch.tensor([0, 1, 1, 0]))
    scores = metrics.compute()
    assert scores.top1 == 0.75
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.auc == 1.0  # class 0: {2, 3} above {0, 1.5}; class 1: probabilities .24, .04 below .50, .33
    metrics.reset()
    metrics.update(logits[:1], torch.tensor([0]))
    assert np.isnan(metrics.compute().auc)


def test_wilson_interval() -> None:
    """Against the closed form at the edges, and a value from Newcombe, Statistics in Medicine 17:857 (1998), table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = wilson_interval(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)
