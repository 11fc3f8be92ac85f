"""One training run, from settings to a folder of checkpoints, history and curves."""

from __future__ import annotations

import difflib
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from edgemamba.train.averaging import MovingAverage
from edgemamba.train.checkpoint import load_checkpoint, read_training_checkpoint
from edgemamba.train.checkpoint_writing import NO_ROOM, AtomicCheckpoints, remove_parts
from edgemamba.train.classifier import Classifier
from edgemamba.train.data import ImageDataset, open_dataset
from edgemamba.train.data.cache import cached
from edgemamba.train.data.module import PicturesModule
from edgemamba.train.data.pictures import pixel_type
from edgemamba.train.data.sheet_console import check_data
from edgemamba.train.distribution import trainer_options
from edgemamba.train.evaluation import Figures, evaluate_parts
from edgemamba.train.history import History, Row
from edgemamba.train.interruption import SaveWithinEpoch
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.progress import EpochProgress
from edgemamba.train.recipes.layers import explain_rate
from edgemamba.train.registry import create_model
from edgemamba.train.resuming import check_resumable, find_checkpoint
from edgemamba.train.settings import TrainingSettings

# Those of timm's create_scheduler_v2, which keeps no list of them.
SCHEDULERS = ("constant", "cosine", "multistep", "plateau", "poly", "rsqrt", "step", "tanh")

_MODE = {"top1": "max", "auc": "max", "loss": "min"}


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: of the run.
        best, last: checkpoints.
        history: one row an epoch, as in ``metrics.csv``.
        model: with the weights of ``best``, on the CPU.
        val: figures of ``best`` on the validation part.
        test: the same on the test part, where there is one.
        seconds: of wall time, from opening the data to the scores.
        unreadable: names of pictures that could not be read.
    """

    folder: Path
    best: Path
    last: Path
    history: list[Row]
    model: Backbone
    val: Figures
    test: Figures | None
    seconds: float
    unreadable: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """JSON-able; written to ``summary.json``."""

        return {
            "best": str(self.best),
            "last": str(self.last),
            "epochs": len(self.history),
            "val": self.val.to_json(),
            "test": None if self.test is None else self.test.to_json(),
            "seconds": round(self.seconds, 1),
            "unreadable": list(self.unreadable),
        }


def check_names(settings: TrainingSettings) -> None:
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


def train(
    settings: TrainingSettings, *, resume: str | None = None, console: Console | None = None
) -> TrainingResult | None:
    """Train a model, or go on training it.

    Args:
        settings: of the run.
        resume: ``auto`` for the run's own ``last.ckpt``, or a path; None for a new run, whose folder must not hold one.
        console: for progress; by default stderr.

    Returns:
        What it left; None on ranks other than the first.

    Raises:
        DataError: the data set cannot be used.
        ModelError, CheckpointError: the model cannot be made, or its start cannot be loaded.
        TrainingError: the settings do not fit together or the machine, the folder holds another run, the checkpoint is of
            another run, or the loss became NaN.
        KeyboardInterrupt: Ctrl-C, after ``last.ckpt`` was saved.
    """
    start = time.monotonic()
    console = console or Console(stderr=True)
    require("tensorboard", purpose="training logs")
    if resume is None and settings.last.exists():
        raise TrainingError(
            f"{settings.folder} already holds a run; go on with --resume auto, or choose another folder with --out"
        )
    check_names(settings)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    dataset = open_dataset(settings.data, val_fraction=settings.val_fraction, fold=settings.fold, seed=settings.seed)
    tell = rank_zero_only(lambda line: console.print(line, highlight=False, soft_wrap=True))
    dataset = cached(dataset, settings.cache, settings.cache_gb, tell)
    model = build_model(settings, len(dataset.class_names))
    model.preprocessing = model.preprocessing.model_copy(update={"dtype": pixel_type(dataset.train)})
    data = PicturesModule(
        dataset,
        model.preprocessing,
        settings.augmentation,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        balanced=settings.balanced,
    )

    def tell_unreadable(name: str, reason: str) -> None:
        console.print(
            f"skipped: {reason if name in reason else f'{name}: {reason}'}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    module = Classifier(model, settings, dataset.class_names, tell_unreadable)
    history = History(settings.folder)
    # Two, because save_last of one skips the epochs that are no better than the best.
    keep_best, keep_last = (
        ModelCheckpoint(
            settings.checkpoints,
            filename=filename,
            monitor=monitor,
            mode=_MODE[settings.monitor],
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        for filename, monitor in (("best", f"val_{settings.monitor}"), ("last", None))
    )
    within = SaveWithinEpoch(
        settings.last,
        settings.checkpoint_minutes * 60,
        lambda text: console.print(text, highlight=False, soft_wrap=True),
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
            check_resumable(checkpoint, settings, dataset.class_names, trainer.world_size)
        if trainer.is_global_zero:
            sheet = check_data(dataset, console, strict=settings.strict_data)
            settings.write()
            sheet.write(settings.folder / "data.json")
            remove_parts(settings.checkpoints)
            _announce(console, dataset, model, trainer)
            if (line := explain_rate(settings, trainer.world_size)) is not None:
                console.print(line, highlight=False, soft_wrap=True)
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
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise TrainingError(
                f"{settings.folder} cannot be written: {error.strerror}; make room, then go on with --resume auto"
            ) from None
    if not trainer.is_global_zero:
        return None

    best = settings.checkpoints / "best.ckpt"
    # Not the trained model itself: that may be sharded between ranks that are no longer here, or compiled.
    trained, _, _ = read_training_checkpoint(best)
    assert isinstance(trained, Backbone)
    model = trained
    model.to(trainer.strategy.root_device)
    figures = evaluate_parts(model, dataset, batch_size=settings.batch_size, workers=settings.workers)
    result = TrainingResult(
        settings.folder,
        best,
        settings.last,
        history.rows,
        model.cpu(),
        figures["val"],
        figures.get("test"),
        time.monotonic() - start,
        tuple(data.unreadable),
    )
    (settings.folder / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n")
    return result


def build_model(settings: TrainingSettings, num_classes: int) -> Backbone:
    """The model that the settings describe, with the weights of ``settings.checkpoint`` where one is named."""
    options = dict(settings.config)
    if settings.image_size is not None:
        options["img_size"] = settings.image_size
    if settings.drop_path is not None:
        options["drop_path_rate"] = settings.drop_path
    model = create_model(settings.model, num_classes=num_classes, **options)
    if settings.checkpoint is not None:
        load_checkpoint(model, settings.checkpoint)
    return model


def _trainer(settings: TrainingSettings, callbacks: list[pl.Callback]) -> pl.Trainer:
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


def _announce(console: Console, dataset: ImageDataset, model: Backbone, trainer: pl.Trainer) -> None:
    counts = dataset.counts()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    pictures = ", ".join(f"{sum(row)} {part}" for part, row in counts.items())
    height, width = model.preprocessing.size
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
    console.print(
        f"{model.model_name}: {parameters / 1e6:.2f} M parameters, {height}x{width} {model.preprocessing.dtype}, {len(dataset.class_names)} "
        f"classes, {pictures}, {trainer.world_size} x {name}, precision {trainer.precision}",
        highlight=False,
        soft_wrap=True,
    )


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
