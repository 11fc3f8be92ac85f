"""An exponential moving average of the weights: what is validated, and what is saved to be exported."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from timm.utils import ModelEmaV3

from edgemamba.train.distribution import Sharded, load_whole_state, whole_state
from edgemamba.train.training_module import TrainingModule

_RAW = "trained_state_dict"
_PREFIX = "model."


class MovingAverage(pl.Callback):
    """timm's ``ModelEmaV3`` over a :class:`TrainingModule`'s model.

    The decay warms up as 1 - (1 + step) ** (-2/3), so that short runs do not validate the random start. In a checkpoint,
    ``state_dict`` holds the average (it is what a reader wants) and ``trained_state_dict`` the weights in training, so that a run
    resumes exactly. Lightning's own ``EMAWeightAveraging`` swaps weights in place for validation, and a run that is
    interrupted there saves them the wrong way round; here the two never change places.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: ModelEmaV3 | None = None
        self._updated = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.average is None:
            assert isinstance(pl_module, TrainingModule)
            sharded = isinstance(trainer.strategy, Sharded)
            # One call for all tensors takes no mixture of shares and whole buffers, such as batch norms have.
            kept = ModelEmaV3(pl_module.model, decay=self.decay, use_warmup=True, foreach=not sharded)
            self.average = kept.requires_grad_(False)
            average = self.average.module
            if isinstance(trainer.strategy, Sharded):
                trainer.strategy.shard(average)
            pl_module.evaluated = lambda: average

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.average is not None
        self.average.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # With gradient accumulation several batches make one step.
        if trainer.global_step > self._updated:
            assert self.average is not None
            assert isinstance(pl_module, TrainingModule)
            self._updated = trainer.global_step
            self.average.update(pl_module.model, step=trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert self.average is not None
        checkpoint[_RAW] = checkpoint["state_dict"]
        average = {_PREFIX + name: value for name, value in whole_state(self.average.module).items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert self.average is not None
        self._updated = checkpoint["global_step"]
        average = {
            name.removeprefix(_PREFIX): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(_PREFIX)
        }
        load_whole_state(self.average.module, average)
        load_whole_state(pl_module, checkpoint[_RAW])
