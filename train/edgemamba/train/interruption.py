"""Checkpoints within an epoch: at Ctrl-C or SIGTERM, and every so often."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment


class _Wish(IntEnum):
    """What a rank wants after a step; the greatest of all ranks' is done."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class SaveWithinEpoch(pl.Callback):
    """Saves at the end of a step: when it is time, and at the first Ctrl-C, which then stops the run. A second one stops
    at once. SIGTERM (a machine that is taken back, a job that is cancelled) is as good as Ctrl-C.

    Where Lightning is interrupted, the optimiser may have updated half of the weights. A checkpoint from the end of a
    step is exact, and the run goes on with the very next batch. During validation the first Ctrl-C lets the epoch end,
    whose checkpoint is then the last. Of several ranks one alone may be asked, or be first: they agree after every step.

    Args:
        path: of the checkpoint.
        seconds: between two checkpoints; 0 leaves them to Ctrl-C and the ends of epochs.
        notify: told that the request was seen.
    """

    def __init__(self, path: Path, seconds: float, notify: Callable[[str], None]) -> None:
        self.path = path
        self.seconds = seconds
        self.notify = notify
        self.requested = False
        self._process = os.getpid()
        self._saved = 0.0
        self._step = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch SIGINT for the time being; does nothing outside the main thread, where Python allows no handlers.

        Raises:
            KeyboardInterrupt: in place of the SystemExit with which Lightning answers one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._request)
        try:
            yield
        except SystemExit:
            # Lightning leaves SIGINT ignored and exits with 1; the caller may have work to do, and codes of its own.
            if self.requested:
                raise KeyboardInterrupt from None
            raise
        finally:
            signal.signal(signal.SIGINT, previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that was forked with this handler: a terminal interrupts it too, and the run will end it
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.notify("interrupted: saving after this step (Ctrl-C again stops at once)")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        self._step = trainer.global_step
        # In the place of Lightning's handler, which talks to the other ranks in the middle of whatever they are at, and is
        # put back with the others when the run ends. Under SLURM it is Lightning that puts the job back into the queue.
        if threading.current_thread() is threading.main_thread() and not SLURMEnvironment.detect():
            signal.signal(signal.SIGTERM, self._request)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two updates there are gradients that no checkpoint holds. The last step of an epoch is followed by
        # validation and the epoch's own checkpoint.
        updated, self._step = trainer.global_step > self._step, trainer.global_step
        if not updated or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        wish = self._agreed(trainer)
        if wish is not _Wish.GO_ON:
            trainer.save_checkpoint(self.path)
        if wish is _Wish.STOP:
            self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agreed(trainer) is _Wish.STOP:
            self._stop()

    def _agreed(self, trainer: pl.Trainer) -> _Wish:
        """What all ranks do now; the first rank's clock is the one that counts."""
        due = trainer.is_global_zero and 0 < self.seconds <= time.monotonic() - self._saved
        wish = _Wish.STOP if self.requested else _Wish.SAVE if due else _Wish.GO_ON
        if trainer.world_size == 1:
            return wish
        mine = torch.tensor(wish, device=trainer.strategy.root_device)
        return _Wish(int(trainer.strategy.reduce(mine, reduce_op="max")))

    def _stop(self) -> None:
        self.requested = True  # by this rank or another: what Lightning makes of the interrupt is ours to undo
        raise KeyboardInterrupt
