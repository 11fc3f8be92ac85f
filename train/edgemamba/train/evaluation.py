"""Score a model on a part of a data set, with the pixels that a device sees."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from edgemamba.train.data.loading import Batch
from edgemamba.train.metrics import ClassificationMetrics, Scores


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int) -> Scores:
    """Score ``model``, as it is and where it is, on every readable picture; on this rank alone.

    Args:
        model: logits (B, num_classes) from normalised pictures (B, 3, H, W); it is put into evaluation mode and back.
        batches: of :meth:`~edgemamba.train.data.module.PicturesModule.evaluation_loader`.
        num_classes: of the data set.
    """
    device = next(model.parameters()).device
    metrics = ClassificationMetrics(num_classes, all_ranks=False).to(device)
    was_training = model.training
    model.eval()
    for batch in batches:
        if len(batch.pixels):
            metrics.update(model(batch.pixels.to(device)).float(), batch.labels.to(device))
    model.train(was_training)
    return metrics.compute()
