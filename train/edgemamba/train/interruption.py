"""Ctrl-C: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl


class SaveOnInterrupt(pl.Callback):
    """Turns the first Ctrl-C into a checkpoint at the end of the running step; a second one stops at once.

    Where Lightning is interrupted, the optimiser may have updated half of the weights. A checkpoint from the end of a
    step is exact, and the run goes on with the very next batch. During validation the first Ctrl-C lets the epoch end,
    whose checkpoint is then the last.

    Args:
        path: of the checkpoint.
        notify: told that the request was seen.
    """

    def __init__(self, path: Path, notify: Callable[[str], None]) -> None:
        self.path = path
        self.notify = notify
        self.requested = False

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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.notify("interrupted: saving after this step (Ctrl-C again stops at once)")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last step of an epoch is followed by validation and the epoch's own checkpoint.
        if self.requested and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.requested:
            raise KeyboardInterrupt
