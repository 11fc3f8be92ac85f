"""Training of a classifier: its loss, mixup and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from edgemamba.train.data.loading import Batch
from edgemamba.train.data.module import PicturesModule
from edgemamba.train.fine_tuning import class_weights, freeze
from edgemamba.train.metrics import ClassificationMetrics
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training_module import TrainingModule


class Classifier(TrainingModule):
    """A classifier in training; its ``preprocessing`` is the one it is trained and validated with."""

    scores: ClassVar[dict[str, str]] = {"val_loss": "loss", "val_top1": "top-1 accuracy", "val_auc": "macro AUC"}

    settings: TrainingSettings
    class_weights: Tensor | None

    def __init__(
        self,
        model: Backbone,
        settings: TrainingSettings,
        class_names: Sequence[str],
        on_unreadable: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        freeze(model, settings.freeze)
        super().__init__(model, settings, class_names, on_unreadable)
        self.mixup: Mixup | None = None
        # No part of checkpoints: they follow from the settings and the data.
        self.register_buffer("class_weights", None, persistent=False)
        if settings.mixup or settings.cutmix:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=len(class_names),
            )
        self.metrics = ClassificationMetrics(len(class_names))

    def setup(self, stage: str) -> None:
        if stage == "fit":
            data: PicturesModule = self.trainer.datamodule  # type: ignore[attr-defined]
            counts = data.dataset.counts()["train"]
            self.class_weights = class_weights(self.settings.class_weights, self.class_names, counts)

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pixels, labels = batch.pixels, batch.labels
        if self.mixup is not None:
            pixels, labels = self.mixup(pixels, labels)
            smoothing = 0.0  # mixup smoothed the labels
        else:
            smoothing = self.settings.label_smoothing
        loss = F.cross_entropy(self.model(pixels).float(), labels, weight=self.class_weights, label_smoothing=smoothing)
        return loss, pixels, labels

    def update_scores(self, batch: Batch) -> None:
        self.metrics.update(self(batch.pixels).float(), batch.labels)

    def take_scores(self) -> dict[str, float]:
        scores = self.metrics.compute()
        self.metrics.reset()
        return {"val_loss": scores.loss, "val_top1": scores.top1, "val_auc": scores.auc}
