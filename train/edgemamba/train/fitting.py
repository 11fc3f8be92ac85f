"""What a run of any task does between its data and its scores: Lightning's trainer, checkpoints, history, resuming, Ctrl-C."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from timm.optim import list_optimizers

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.extras import require
from edgemamba.runtime.whole_files import remove_parts
from edgemamba.train.averaging import MovingAverage
from edgemamba.train.checkpoint_writing import NO_ROOM, AtomicCheckpoints
from edgemamba.train.distribution import is_lost_peer, trainer_options
from edgemamba.train.history import History
from edgemamba.train.interruption import SaveWithinEpoch
from edgemamba.train.progress import EpochProgress
from edgemamba.train.resuming import check_resumable, find_checkpoint
from edgemamba.train.settings import RunSettings
from edgemamba.train.training_module import TrainingModule

# Those of timm's create_scheduler_v2, which keeps no list of them, but for plateau: it cannot go by updates.
SCHEDULERS = ("constant", "cosine", "multistep", "poly", "rsqrt", "step", "tanh")


def begin(settings: RunSettings, resume: str | None) -> None:
    """Refuse what can be refused before anything is read, and seed everything.

    Raises:
        TrainingError: the folder holds another run, or timm does not know a name.
    """
    require("tensorboard", purpose="training logs")
    if resume is None and settings.last.exists():
        raise TrainingError(
            f"{settings.folder} already holds a run; go on with --resume auto, or choose another folder with --out"
        )
    check_names(settings)
    pl.seed_everything(settings.seed, workers=True, verbose=False)


def check_names(settings: RunSettings) -> None:
    """Refuse names that timm does not know before anything is read.

    Raises:
        TrainingError: names the nearest.
    """
    for option, name, known in (
        ("opt", settings.optimizer, [str(name) for name in list_optimizers()]),
        ("sched", settings.scheduler, SCHEDULERS),
    ):
        # timm takes a prefix for a wrapper of the optimiser it stands before, as in "lookahead_adamw".
        if name.lower().rpartition("_")[2] not in known and name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=3) or sorted(known)
            raise TrainingError(f"--{option} {name} is not known; nearest: {', '.join(near[:6])}")


def fit(
    module: TrainingModule,
    data: pl.LightningDataModule,
    settings: RunSettings,
    console: Console,
    *,
    resume: str | None,
    introduce: Callable[[pl.Trainer], None],
) -> tuple[pl.Trainer, History]:
    """Train to the end of the last epoch, leaving ``best.ckpt``, ``last.ckpt`` and the history in the folder of the run.

    Args:
        module: the model in training.
        data: its loaders.
        settings: of the run.
        console: for progress.
        resume: as in :func:`edgemamba.train.training.train`.
        introduce: called on the first rank before training: says what will be trained on what, and writes the settings.

    Raises:
        TrainingError, CheckpointError, KeyboardInterrupt: as :func:`edgemamba.train.training.train` says.
    """
    history = History(settings.folder)
    # Two, because save_last of one skips the epochs that are no better than the best.
    keep_best, keep_last = (
        ModelCheckpoint(
            settings.checkpoints,
            filename=filename,
            monitor=monitor,
            mode="min" if settings.monitor == "loss" else "max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        for filename, monitor in (("best", f"val_{settings.monitor}"), ("last", None))
    )
    within = SaveWithinEpoch(
        settings.last,
        settings.checkpoint_minutes * 60,
        rank_zero_only(lambda text: console.print(text, highlight=False, soft_wrap=True)),
    )
    with _quiet():
        trainer = _trainer(
            settings,
            [
                *([MovingAverage(settings.ema_decay)] if settings.ema else []),
                history,
                within,
                EpochProgress(console, history),
                keep_best,
                keep_last,
            ],
        )
        checkpoint = None
        if resume is not None:
            checkpoint = find_checkpoint(resume, settings)
            check_resumable(checkpoint, settings, module.class_names, trainer.world_size)
        if trainer.is_global_zero:
            introduce(trainer)
            remove_parts(settings.checkpoints, "*.ckpt")
        try:
            with within.installed():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except KeyboardInterrupt:
            if trainer.is_global_zero and settings.last.exists():
                console.print(
                    f"stopped; {settings.last} is saved: the same command with --resume auto goes on",
                    highlight=False,
                    soft_wrap=True,
                )
            raise
        except MisconfigurationException as error:
            raise TrainingError(str(error)) from None
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise TrainingError(
                "another process of this run ended, and its own lines say why; all of them started again with --resume auto "
                "go on from the last checkpoint"
            ) from None
        except OSError as error:
            full = error.errno in NO_ROOM
            if not (full or _within(settings, error)):
                raise
            raise TrainingError(
                f"{error.filename or settings.folder} cannot be written: {error.strerror}; "
                f"{'make room' if full else 'mend that'}, then go on with --resume auto"
            ) from None
    return trainer, history


def _within(settings: RunSettings, error: OSError) -> bool:
    """Whether an error is of a file in the folder of the run."""
    where = error.filename
    return isinstance(where, str | os.PathLike) and Path(where).resolve().is_relative_to(settings.folder.resolve())


def tell_unreadable(console: Console) -> Callable[[str, str], None]:
    """A function that says which picture is skipped, and why."""

    def tell(name: str, reason: str) -> None:
        console.print(
            f"skipped: {reason if name in reason else f'{name}: {reason}'}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    return tell


def device_name(trainer: pl.Trainer) -> str:
    """What a run is on, for people."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


def _trainer(settings: RunSettings, callbacks: list[pl.Callback]) -> pl.Trainer:
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            **trainer_options(settings),
            plugins=[AtomicCheckpoints()],
            precision=settings.precision,
            max_epochs=settings.epochs,
            limit_train_batches=settings.limit_train_batches,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_grad,
            callbacks=callbacks,
            logger=TensorBoardLogger(settings.folder, name="tensorboard", version="", default_hp_metric=False),
            default_root_dir=settings.folder,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise TrainingError(f"Lightning refuses these settings: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints off the screen: what matters of them is in the run's own lines."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            # A weight of one column has no one layout, and says nothing of speed here.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # Some families' blocks end in a view; none of them is changed in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
