"""A model in training on Lightning, whatever its task: optimiser, schedule, seeds, divergence and what checkpoints hold."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

import lightning.pytorch as pl
import numpy as np
import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.checkpoint import METADATA_KEY, training_metadata
from edgemamba.train.distribution import align_buffers, gather, prepare, release
from edgemamba.train.divergence import not_finite, save_batch
from edgemamba.train.fine_tuning import Patience, create_optimizer, keep_frozen
from edgemamba.train.models.model import Model
from edgemamba.train.resuming import LOSS_KEY, SETTINGS_KEY, WORLD_SIZE_KEY
from edgemamba.train.settings import RunSettings


class TrainingModule(pl.LightningModule):
    """A model in training.

    Args:
        model: what is trained.
        settings: of the run.
        class_names: of the data set; checkpoints carry them.
        on_unreadable: told the name of each picture or volume that could not be read, and the reason, once.

    Attributes:
        scores: the figures of validation that histories keep, as they are logged, and what people call them; the first is the
            loss, the others grow better with their value.

    Every batch seeds the random generators by (seed, update, rank, batch of the update), so that drop path and mixup draw the same
    whether or not the run was interrupted before. What validation looks at is :attr:`evaluated`, which the moving average
    replaces.
    """

    scores: ClassVar[dict[str, str]] = {"val_loss": "loss"}

    def __init__(
        self,
        model: Model,
        settings: RunSettings,
        class_names: Sequence[str],
        on_unreadable: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.class_names = tuple(class_names)
        self.on_unreadable = on_unreadable
        # A function, because assigning the average itself would register it as a submodule.
        self.evaluated: Callable[[], nn.Module] = lambda: self.model
        self.train_loss = MeanMetric()
        self._scheduler: Scheduler | None = None
        self._batch: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def loss_of(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a training batch, and the pixels and labels that it was made of: what a run that diverges leaves."""

    @abstractmethod
    def update_scores(self, batch: Any) -> None:
        """Add a batch of validation to what :meth:`take_scores` gives."""

    @abstractmethod
    def take_scores(self) -> dict[str, float]:
        """The figures of :attr:`scores` over everything since they were last taken."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return [] if self.settings.patience is None else [Patience(self.settings)]

    def train(self, mode: bool = True) -> TrainingModule:
        super().train(mode)
        if mode:
            keep_frozen(self.model)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.evaluated()(pixels)
        return logits

    def configure_model(self) -> None:
        prepare(self.model, self.trainer.strategy, compiled=self.settings.compile)

    def on_train_epoch_start(self) -> None:
        keep_frozen(self.model)  # Lightning calls train() on no model that is in training mode from the start

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        part = batch_idx % self.settings.accumulate
        entropy = (self.settings.seed, self.global_step, self.global_rank, part)
        first, second = np.random.SeedSequence(entropy).generate_state(2).tolist()
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(first)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._note(batch)
        loss, pixels, labels = self.loss_of(batch)
        self._batch = pixels, labels
        value = float(loss.detach())
        if not math.isfinite(value):
            self._diverged(f"the loss is {value}")
        self.train_loss.update(value, weight=len(batch.pixels))
        self.log("train_step_loss", loss.detach(), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"])

    def _diverged(self, what: str) -> NoReturn:
        """Save the last batch, and stop."""
        assert self._batch is not None
        where = save_batch(
            self.settings.folder, *self._batch, step=self.global_step, epoch=self.current_epoch, rank=self.global_rank
        )
        raise TrainingError(
            f"{what} at step {self.global_step} (epoch {self.current_epoch}): training diverged and was stopped; the last "
            f"checkpoint is intact, and the batch is in {where}; try a lower --lr, a longer --warmup-epochs, or "
            "--precision 32"
        )

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.train_loss.compute())
        self.train_loss.reset()

    def on_validation_epoch_start(self) -> None:
        align_buffers(self.evaluated(), self.trainer.strategy)
        gather(self.evaluated())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._note(batch)
        if len(batch.pixels):
            self.update_scores(batch)

    def on_validation_epoch_end(self) -> None:
        release(self.evaluated())
        self.log_dict(self.take_scores(), prog_bar=True, sync_dist=False)

    def _note(self, batch: Any) -> None:
        if batch.unreadable:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            for name, reason in data.note_unreadable(batch.unreadable).items():
                self.on_unreadable(name, reason)

    def configure_optimizers(self) -> Any:
        settings = self.settings
        peak = settings.peak_lr(self.trainer.world_size)
        optimizer = create_optimizer(self.model, settings, peak)
        # Not trainer.estimated_stepping_batches: that sets the loader up before its state is restored.
        updates = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        if settings.limit_train_batches is not None:
            updates = min(updates, settings.limit_train_batches)
        updates = math.ceil(updates / settings.accumulate)
        try:
            scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=settings.scheduler,
                num_epochs=settings.epochs,
                # A warm-up as long as the run leaves nothing to train with.
                warmup_epochs=min(settings.warmup_epochs, settings.epochs / 5),  # type: ignore[arg-type]
                warmup_lr=min(1e-6, peak),
                min_lr=min(settings.min_lr, peak),
                decay_milestones=settings.milestones or (90, 180, 270),  # type: ignore[arg-type]
                decay_rate=settings.decay_rate,
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
        if (name := not_finite(self.model)) is not None:
            self._diverged(f"{name} is not finite")
        checkpoint[METADATA_KEY] = training_metadata(self.model, self.class_names)
        checkpoint[SETTINGS_KEY] = self.settings.model_dump(mode="json")
        checkpoint[WORLD_SIZE_KEY] = self.trainer.world_size
        # Of the batches so far; a run that is resumed within an epoch reports the loss of all of it.
        with self.train_loss.sync_context():
            total, weight = float(self.train_loss.mean_value), float(self.train_loss.weight)
        checkpoint[LOSS_KEY] = [total / weight, weight] if weight else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # timm's schedules are functions of the update's number. Restoring their old settings would only keep a
        # run that is resumed for more epochs from following its new schedule.
        checkpoint["lr_schedulers"] = [{} for _ in checkpoint.get("lr_schedulers", [])]
        if checkpoint[LOSS_KEY] is not None and self.trainer.is_global_zero:
            mean, weight = checkpoint[LOSS_KEY]
            self.train_loss.update(mean, weight=weight)

    def on_train_start(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step_update(self.global_step)
