"""One run that trains a segmenter, from settings to a folder of checkpoints, history, curves and scores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from edgemamba.runtime.errors import DataError, SourceError, TrainingError
from edgemamba.runtime.extras import require
from edgemamba.train.checkpoint import METADATA_KEY, load_checkpoint, read_training_checkpoint
from edgemamba.train.checkpoint_files import read_file
from edgemamba.train.data import FilePictures, Part, Sample
from edgemamba.train.data.pictures import pixel_type
from edgemamba.train.fitting import begin, device_name, fit
from edgemamba.train.history import Row
from edgemamba.train.models.model import Model
from edgemamba.train.models.segmenter import Segmenter
from edgemamba.train.registry import create_model
from edgemamba.train.segmentation.augmenting import Augmenter
from edgemamba.train.segmentation.cases import Cases, PictureCases, VolumeCases, card_of, count_classes
from edgemamba.train.segmentation.contents import PartContents, examine, leaks
from edgemamba.train.segmentation.evaluating import evaluate
from edgemamba.train.segmentation.loading import CasesModule
from edgemamba.train.segmentation.module import SegmenterModule
from edgemamba.train.segmentation.pairs import PairSet, channels_of, find_pairs, sources_of
from edgemamba.train.segmentation.scoring import SegmentationFigures
from edgemamba.train.segmentation.settings import SegmentationSettings


@dataclass(frozen=True)
class SegmentationResult:
    """What a run left behind.

    Attributes:
        folder: of the run.
        best, last: checkpoints.
        history: one row an epoch, as in ``metrics.csv``.
        model: with the weights of ``best``, on the CPU.
        class_names: the background first.
        val, test: figures of ``best``, at the masks' own resolution.
        seconds: of wall time.
    """

    folder: Path
    best: Path
    last: Path
    history: list[Row]
    model: Model
    class_names: tuple[str, ...]
    val: SegmentationFigures
    test: SegmentationFigures | None
    seconds: float

    def summary(self) -> dict[str, Any]:
        """JSON-able; written to ``summary.json``."""
        return {
            "best": str(self.best),
            "last": str(self.last),
            "epochs": len(self.history),
            "class_names": list(self.class_names),
            "val": self.val.to_json(),
            "test": None if self.test is None else self.test.to_json(),
            "seconds": round(self.seconds, 1),
        }


def train_segmenter(
    settings: SegmentationSettings, *, resume: str | None = None, console: Console | None = None
) -> SegmentationResult | None:
    """Train a segmenter, or go on training it. Arguments, errors and files as in :func:`edgemamba.train.training.train`.

    Every case is read once before the first epoch, so that one that cannot be used is named at once.
    """
    start = time.monotonic()
    console = console or Console(stderr=True)
    for name in ("monai", "nibabel"):
        require(name, purpose="training segmenters")
    begin(settings, resume)
    found = find_pairs(settings.data, val_fraction=settings.val_fraction, seed=settings.seed)
    names = found.class_names or _numbered(found)
    model = build_model(settings, len(names), _modalities(settings, found))
    if (model.volume is not None) != found.volumes:
        kinds = ("volumes", "pictures") if found.volumes else ("pictures", "volumes")
        raise TrainingError(f"{settings.data} holds {kinds[0]}, and {model.model_name} segments {kinds[1]}")
    parts = make_cases(settings, model, found, len(names))
    patch = _patch(settings, model)
    data = CasesModule(
        parts,
        Augmenter(settings.augmentation, patch, axes=3 if found.volumes else 2),
        batch_size=settings.batch_size,
        each=1 if patch is None else settings.patches_per_case,
        workers=settings.workers,
        seed=settings.seed,
        whole=patch is None,
    )
    try:
        contents = {part: examine(cases) for part, cases in parts.items()}
    except SourceError as error:
        raise DataError(str(error)) from None
    module = SegmenterModule(model, settings, names, patch)

    def introduce(trainer: pl.Trainer) -> None:
        settings.write()
        _announce(console, model, names, parts, contents, trainer)

    trainer, history = fit(module, data, settings, console, resume=resume, introduce=introduce)
    if not trainer.is_global_zero:
        return None
    best = settings.checkpoints / "best.ckpt"
    trained, _, _ = read_training_checkpoint(best)
    trained.to(trainer.strategy.root_device)
    figures = {
        part: evaluate(trained, parts[part], names, patch=patch, overlap=settings.overlap)
        for part in ("val", "test")
        if part in parts
    }
    result = SegmentationResult(
        settings.folder,
        best,
        settings.last,
        history.rows,
        trained.cpu(),
        names,
        figures["val"],
        figures.get("test"),
        time.monotonic() - start,
    )
    settings.leave("summary.json", result.summary())
    return result


def build_model(settings: SegmentationSettings, num_classes: int, modalities: tuple[str, ...] | None) -> Model:
    """The segmenter that the settings describe, with the weights of ``settings.checkpoint``: of a segmenter, or of a classifier
    for its backbone."""
    channels = None if modalities is None else len(modalities)
    model: Model = create_model(settings.model, **settings.model_options(num_classes, channels))
    if model.task != "segmentation":
        raise TrainingError(f"{model.model_name} is a classifier; give it a --head to make it a segmenter")
    if model.volume is not None:
        model.volume = card_of(
            model.volume,
            modalities=modalities or model.volume.modalities,
            spacing=settings.spacing,
            normalisation=(settings.normalisation.model_dump(),),
            overlap=settings.overlap,
        )
    if settings.checkpoint is not None:
        start: Model = model
        if isinstance(model, Segmenter) and not _is_segmenters(Path(settings.checkpoint)):
            start = model.backbone
        load_checkpoint(start, settings.checkpoint)
    return model


def make_cases(settings: SegmentationSettings, model: Model, found: PairSet, classes: int) -> dict[Part, Cases]:
    """The cases of each part, as the model reads them. Sets the depth of pixels that the model's preprocessing is for."""
    if model.volume is not None:
        return {part: VolumeCases(pairs, classes, model.volume) for part, pairs in found.parts.items()}
    pictures = FilePictures([Sample(pair.image, 0) for pair in found.parts["train"]])
    model.preprocessing = model.preprocessing.model_copy(update={"dtype": pixel_type(pictures)})
    resize = settings.sampling == "resize"
    return {
        part: PictureCases(pairs, classes, model.preprocessing, resize=resize) for part, pairs in found.parts.items()
    }


def _patch(settings: SegmentationSettings, model: Model) -> tuple[int, ...] | None:
    if model.volume is not None:
        return model.volume.patch
    return model.preprocessing.size if settings.sampling == "patches" else None


def _modalities(settings: SegmentationSettings, found: PairSet) -> tuple[str, ...] | None:
    """The names of the channels of volumes: by the settings or the files; else as many as the first case has, numbered, or None
    where the settings of the model say how many. All cases must agree."""
    if not found.volumes:
        return None
    said = {sources_of(pair)[1]: pair for pairs in found.parts.values() for pair in pairs}
    if len(said) > 1:
        (first, one), (second, other) = list(said.items())[:2]
        raise DataError(
            f"{one.image} has the modalities {', '.join(first) or 'of one file'} and {other.image} {', '.join(second) or 'of one file'}; "
            "every case needs the same"
        )
    (names,) = said
    if settings.modalities and names and set(settings.modalities) != set(names):
        raise DataError(f"--modalities {', '.join(settings.modalities)}: the cases have {', '.join(names)}")
    if settings.modalities or names or "in_chans" in settings.config:
        return settings.modalities or names or None
    count = channels_of(found.parts["train"][0])
    return ("image",) if count == 1 else tuple(f"image{i + 1}" for i in range(count))


def _numbered(found: PairSet) -> tuple[str, ...]:
    """Names for the labels that the masks hold."""
    pairs = [pair for part in found.parts.values() for pair in part]
    return ("background", *(f"class {i}" for i in range(1, count_classes(pairs, volumes=found.volumes))))


def _is_segmenters(path: Path) -> bool:
    """Whether a checkpoint is of a run like this one."""
    metadata = read_file(path).get(METADATA_KEY)
    return isinstance(metadata, Mapping) and "head" in dict(metadata.get("config") or {})


def _announce(
    console: Console,
    model: Model,
    names: tuple[str, ...],
    parts: Mapping[Part, Cases],
    contents: Mapping[Part, PartContents],
    trainer: pl.Trainer,
) -> None:
    """What is trained on what, in how many cases of each part each class is, and which cases are in two parts."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = "x".join(map(str, model.volume.patch if model.volume is not None else model.preprocessing.size))
    pairs = ", ".join(f"{len(cases)} {part}" for part, cases in parts.items())
    lines = [
        f"{model.model_name}: {parameters / 1e6:.2f} M parameters, {size}, {len(names)} classes, {pairs}, "
        f"{trainer.world_size} x {device_name(trainer)}, precision {trainer.precision}"
    ]
    for label, name in enumerate(names):
        seen = ", ".join(
            f"{found.labels.get(str(label), 0)} of {len(parts[part])} {part}" for part, found in contents.items()
        )
        lines.append(f"  {label} {name}: in {seen}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in leaks(contents):
        console.print(f"WARNING, data leak: {line}", style="bold red", highlight=False, markup=False, soft_wrap=True)
