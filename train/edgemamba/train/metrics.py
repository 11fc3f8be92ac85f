"""What a classifier is judged by: loss, top-1 accuracy, macro AUC and the confusion matrix, over all ranks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

from edgemamba.runtime.errors import DataError


@dataclass(frozen=True)
class Scores:
    """Scores over ``count`` pictures.

    Attributes:
        loss: mean cross entropy, in nats, without label smoothing.
        top1: share of pictures whose most probable class is right.
        auc: mean over the classes of the area under the one-against-rest ROC curve. Classes of which there is no
            picture (or nothing else) have none and are left out; NaN where that leaves nothing.
        confusion: int64 (classes, classes); row is the truth, column the prediction.
        class_auc: float64 (classes,), the areas that ``auc`` is the mean of; NaN for classes that have none.
    """

    loss: float
    top1: float
    auc: float
    count: int
    confusion: NDArray[np.int64]
    class_auc: NDArray[np.float64]


class ClassificationMetrics(nn.Module):
    """Accumulates logits batch by batch, on the module's device.

    Args:
        num_classes: columns of the logits.
        all_ranks: sum over the ranks of a distributed run; then all of them must call :meth:`compute`.
    """

    def __init__(self, num_classes: int, *, all_ranks: bool = True) -> None:
        super().__init__()
        self.loss = MeanMetric(sync_on_compute=all_ranks)
        self.auc = MulticlassAUROC(num_classes, average=None, sync_on_compute=all_ranks)
        self.confusion = MulticlassConfusionMatrix(num_classes, sync_on_compute=all_ranks)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add float32 or float64 logits (B, num_classes) and int64 labels (B,)."""
        self.loss.update(F.cross_entropy(logits, labels), weight=len(labels))
        self.confusion.update(logits, labels)
        # Probabilities, because torchmetrics takes a batch of logits that all lie in 0..1 for probabilities.
        self.auc.update(logits.softmax(dim=1), labels)

    def compute(self) -> Scores:
        """Scores of everything since the last reset.

        Raises:
            DataError: that was nothing; on all ranks alike, where they are summed over.
        """
        with warnings.catch_warnings():
            # Of ranks that saw nothing, and of classes without pictures, which are left out below.
            warnings.simplefilter("ignore", UserWarning)
            confusion = self.confusion.compute()
            support = confusion.sum(dim=1)
            if not support.any():
                raise DataError("none of the pictures to validate on can be read")
            judged = (support > 0) & (support < support.sum())
            auc = self.auc.compute().where(judged, float("nan"))
        return Scores(
            float(self.loss.compute()),
            # Not by torchmetrics, which divides in float32: 9 of 10 must not be below a bar of 0.9.
            int(confusion.trace()) / int(support.sum()),
            float(auc.nanmean()),
            int(support.sum()),
            confusion.cpu().numpy().astype(np.int64),
            auc.cpu().numpy().astype(np.float64),
        )

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.loss, self.auc, self.confusion):
            metric.reset()


def wilson_interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22:209, 1927); 95 % by default.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError("an interval needs at least one observation")
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
