"""Training of a classifier on Lightning: loss, optimiser, schedule and metrics."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.checkpoint import METADATA_KEY, training_metadata
from edgemamba.train.data.loading import Batch
from edgemamba.train.data.module import PicturesModule
from edgemamba.train.metrics import ClassificationMetrics
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.resuming import SETTINGS_KEY
from edgemamba.train.settings import TrainingSettings


class Classifier(pl.LightningModule):
    """A model in training.

    Args:
        model: the backbone; its ``preprocessing`` is the one it is trained and validated with.
        settings: of the run.
        class_names: of the data set; checkpoints carry them.
        on_unreadable: told the name of each picture that could not be read, and the reason, once.

    Every training step seeds the random generators by (seed, step, rank), so that drop path and mixup draw the same
    whether or not the run was interrupted before. What validation looks at is :attr:`evaluated`, which the moving average
    replaces.
    """

    def __init__(
        self,
        model: Backbone,
        settings: TrainingSettings,
        class_names: Sequence[str],
        on_unreadable: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        super().__init__()
        self.model: Backbone = model
        self.settings = settings
        self.class_names = tuple(class_names)
        self.on_unreadable = on_unreadable
        # A function, because assigning the average itself would register it as a submodule.
        self.evaluated: Callable[[], nn.Module] = lambda: self.model
        self.mixup: Mixup | None = None
        self.loss: nn.Module = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        if settings.mixup or settings.cutmix:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=len(class_names),
            )
            self.loss = SoftTargetCrossEntropy()
        self.train_loss = MeanMetric()
        self.metrics = ClassificationMetrics(len(class_names))
        self._scheduler: Scheduler | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.evaluated()(pixels)
        return logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        entropy = (self.settings.seed, self.global_step, self.global_rank)
        first, second = np.random.SeedSequence(entropy).generate_state(2).tolist()
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(first)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._note(batch)
        pixels, labels = batch.pixels, batch.labels
        if self.mixup is not None:
            pixels, labels = self.mixup(pixels, labels)
        loss: Tensor = self.loss(self.model(pixels).float(), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.global_step} (epoch {self.current_epoch}): training diverged and was "
                "stopped, and the last checkpoint is intact; try a lower --lr, a longer --warmup-epochs, or --precision 32"
            )
        self.train_loss.update(value, weight=len(pixels))
        self.log("train_step_loss", loss.detach(), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.train_loss.compute())
        self.train_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note(batch)
        if len(batch.pixels):
            self.metrics.update(self(batch.pixels).float(), batch.labels)

    def on_validation_epoch_end(self) -> None:
        scores = self.metrics.compute()
        self.metrics.reset()
        self.log_dict(
            {"val_loss": scores.loss, "val_top1": scores.top1, "val_auc": scores.auc}, prog_bar=True, sync_dist=False
        )

    def _note(self, batch: Batch) -> None:
        if batch.unreadable:
            data: PicturesModule = self.trainer.datamodule  # type: ignore[attr-defined]
            for name, reason in data.note_unreadable(batch.unreadable).items():
                self.on_unreadable(name, reason)

    def configure_optimizers(self) -> Any:
        settings = self.settings
        try:
            optimizer = create_optimizer_v2(
                self.model, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay
            )
        except (ValueError, KeyError, AssertionError) as error:
            raise TrainingError(f"--opt {settings.optimizer}: {error}") from None
        # Not trainer.estimated_stepping_batches: that sets the loader up before its state is restored.
        updates = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        if settings.limit_train_batches is not None:
            updates = min(updates, settings.limit_train_batches)
        try:
            scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=settings.scheduler,
                num_epochs=settings.epochs,
                # A warm-up as long as the run leaves nothing to train with.
                warmup_epochs=min(settings.warmup_epochs, settings.epochs / 5),  # type: ignore[arg-type]
                warmup_lr=min(1e-6, settings.lr),
                min_lr=min(settings.min_lr, settings.lr),
                step_on_epochs=False,
                updates_per_epoch=updates,
            )
        except (ValueError, AssertionError) as error:
            raise TrainingError(f"--sched {settings.scheduler}: {error}") from None
        if scheduler is None:
            return optimizer
        self._scheduler = scheduler
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[METADATA_KEY] = training_metadata(self.model, self.class_names)
        checkpoint[SETTINGS_KEY] = self.settings.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # timm's schedules are functions of the update's number. Restoring their old settings would only keep a
        # run that is resumed for more epochs from following its new schedule.
        checkpoint["lr_schedulers"] = [{} for _ in checkpoint.get("lr_schedulers", [])]

    def on_train_start(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step_update(self.global_step)
