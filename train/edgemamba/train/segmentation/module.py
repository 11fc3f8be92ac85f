"""Training of a segmenter: its loss, and its scores while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from edgemamba.runtime.extras import require
from edgemamba.train.data.loading import Batch
from edgemamba.train.fine_tuning import freeze
from edgemamba.train.models.model import Model
from edgemamba.train.models.segmenter import Segmenter
from edgemamba.train.segmentation.masks import IGNORED
from edgemamba.train.segmentation.predicting import slide
from edgemamba.train.segmentation.scoring import score_dice
from edgemamba.train.segmentation.settings import SegmentationSettings
from edgemamba.train.training_module import TrainingModule


class DiceCrossEntropy(nn.Module):
    """MONAI's Dice loss (classes and batch together, without the background) plus cross entropy; ignored places count in
    neither. As in nnU-Net (Isensee et al., Nature Methods 18:203, 2021)."""

    def __init__(self, dice_weight: float, ce_weight: float) -> None:
        super().__init__()
        losses = require("monai.losses", purpose="training segmenters")
        self.dice = losses.DiceLoss(
            softmax=True, to_onehot_y=True, include_background=False, batch=True, ignore_index=IGNORED
        )
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 (B, classes, *size) and int64 (B, *size) -> a number."""
        cross = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        cross = cross / (labels != IGNORED).sum().clamp(min=1)
        dice: Tensor = self.dice(logits, labels[:, None])
        return self.dice_weight * dice + self.ce_weight * cross


class SegmenterModule(TrainingModule):
    """A segmenter in training.

    Args:
        model: a segmenter of pictures or of volumes.
        settings: of the run.
        class_names: the background first.
        patch: of the sliding windows that validation goes through; None where it sees cases of the model's size.
    """

    scores: ClassVar[dict[str, str]] = {"val_loss": "loss", "val_dice": "mean Dice"}

    settings: SegmentationSettings

    def __init__(
        self, model: Model, settings: SegmentationSettings, class_names: Sequence[str], patch: Sequence[int] | None
    ) -> None:
        if isinstance(model, Segmenter):
            freeze(model.backbone, settings.freeze)
        super().__init__(model, settings, class_names)
        self.patch = patch
        self.loss = DiceCrossEntropy(settings.dice_weight, settings.ce_weight)
        self.val_loss = MeanMetric()
        # One a class, over the cases that have it, so that those that lack it everywhere say nothing.
        self.val_dice = nn.ModuleList(MeanMetric() for _ in class_names[1:])

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return self.loss(self.model(batch.pixels).float(), batch.labels), batch.pixels, batch.labels

    def update_scores(self, batch: Batch) -> None:
        logits = (
            self(batch.pixels) if self.patch is None else slide(self, batch.pixels, self.patch, self.settings.overlap)
        )
        self.val_loss.update(self.loss(logits.float(), batch.labels), weight=len(batch.pixels))
        for prediction, truth in zip(logits.argmax(1), batch.labels, strict=True):
            for metric, dice in zip(self.val_dice, score_dice(prediction, truth, len(self.class_names)), strict=True):
                if not torch.isnan(dice):
                    assert isinstance(metric, MeanMetric)
                    metric.update(dice)

    def take_scores(self) -> dict[str, float]:
        means = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes that no case has: their mean is NaN
            for metric in self.val_dice:
                assert isinstance(metric, MeanMetric)
                means.append(metric.compute())
                metric.reset()
        loss = float(self.val_loss.compute())
        self.val_loss.reset()
        return {"val_loss": loss, "val_dice": float(torch.stack(means).nanmean())}
