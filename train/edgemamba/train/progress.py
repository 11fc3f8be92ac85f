"""What a run shows while it trains: a live bar for the running epoch, and one line for every epoch that is over."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from edgemamba.train.history import History
from edgemamba.train.training_module import TrainingModule


class EpochProgress(ProgressBar):
    """Progress on a rich console; where that is no terminal, only the lines of the epochs appear.

    Lightning's own ``RichProgressBar`` writes to stdout and can only be turned to stderr by reconfiguring rich for the whole
    process.
    """

    def __init__(self, console: Console, history: History) -> None:
        super().__init__()
        self.console = console
        self.history = history
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", figures="")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", int(self.total_train_batches))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            loss = float(trainer.callback_metrics.get("train_step_loss", float("nan")))
            self._bar.update(self._task, completed=batch_idx + 1, figures=f"loss {loss:.3f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = trainer.num_val_batches
        self._begin("validation", int(batches[0] if isinstance(batches, list) else batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and self.history.rows:
            assert isinstance(pl_module, TrainingModule)
            row = self.history.rows[-1]
            scores = "  ".join(f"{label} {row[column]:.4f}" for column, label in pl_module.scores.items())
            self.console.print(
                f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  loss {row['train_loss']:.4f}  "
                f"validation: {scores}  lr {row['lr']:.2e}  {row['seconds']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _begin(self, description: str, total: int) -> None:
        if self._bar is not None:
            self._bar.reset(self._task, description=description, total=total, figures="")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
