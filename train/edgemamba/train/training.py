"""One training run, from settings to a folder of checkpoints, history and curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.checkpoint import load_checkpoint, read_training_checkpoint
from edgemamba.train.classifier import Classifier
from edgemamba.train.data import ImageDataset, open_dataset
from edgemamba.train.data.cache import cached
from edgemamba.train.data.module import PicturesModule
from edgemamba.train.data.pictures import pixel_type
from edgemamba.train.data.sheet_console import check_data
from edgemamba.train.evaluation import Figures, evaluate_parts
from edgemamba.train.fine_tuning import explain_frozen
from edgemamba.train.fitting import begin, device_name, fit, tell_unreadable
from edgemamba.train.history import Row
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.recipes.layers import explain_rate
from edgemamba.train.registry import create_model
from edgemamba.train.settings import TrainingSettings


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
    begin(settings, resume)
    dataset = open_dataset(settings.data, val_fraction=settings.val_fraction, fold=settings.fold, seed=settings.seed)
    tell = rank_zero_only(lambda line: console.print(line, highlight=False, soft_wrap=True))
    dataset = cached(dataset, settings.cache, settings.cache_gb, tell)
    model = build_model(settings, len(dataset.class_names), tell)
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

    module = Classifier(model, settings, dataset.class_names, tell_unreadable(console))

    def introduce(trainer: pl.Trainer) -> None:
        sheet = check_data(dataset, console, strict=settings.strict_data)
        settings.write()
        settings.leave("data.json", sheet.summary())
        _announce(console, dataset, model, trainer)
        for line in (explain_frozen(model), explain_rate(settings, trainer.world_size)):
            if line is not None:
                tell(line)

    trainer, history = fit(module, data, settings, console, resume=resume, introduce=introduce)
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
    settings.leave("summary.json", result.summary())
    return result


def build_model(settings: TrainingSettings, num_classes: int, tell: Callable[[str], None]) -> Backbone:
    """The model that the settings describe, with the weights of ``settings.checkpoint`` where one is named; ``tell`` is told
    what of them was taken."""
    options = dict(settings.config)
    if "num_classes" in options:
        raise TrainingError("--set num_classes: the classes are those of the data; leave it out")
    for option, field, value in (
        ("image-size", "img_size", settings.image_size),
        ("drop-path", "drop_path_rate", settings.drop_path),
    ):
        if value is not None:
            if field in options:
                raise TrainingError(f"--{option} and --set {field} say the same; give one of them")
            options[field] = value
    model = create_model(settings.model, num_classes=num_classes, **options)
    if not isinstance(model, Backbone):
        raise TrainingError(f"{settings.model} is a segmenter as it is asked for; `edgemamba segment` trains those")
    if settings.checkpoint is not None:
        tell(str(load_checkpoint(model, settings.checkpoint)))
    return model


def _announce(console: Console, dataset: ImageDataset, model: Backbone, trainer: pl.Trainer) -> None:
    counts = dataset.counts()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    pictures = ", ".join(f"{sum(row)} {part}" for part, row in counts.items())
    height, width = model.preprocessing.size
    console.print(
        f"{model.model_name}: {parameters / 1e6:.2f} M parameters, {height}x{width} {model.preprocessing.dtype}, {len(dataset.class_names)} "
        f"classes, {pictures}, {trainer.world_size} x {device_name(trainer)}, precision {trainer.precision}",
        highlight=False,
        soft_wrap=True,
    )
