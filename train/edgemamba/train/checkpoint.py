"""Checkpoints: read without running anything that is in them, recognised by their keys, fitted loudly to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgemamba.runtime.errors import CheckpointError, EdgeMambaError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.train.checkpoint_adapting import Grid, fit, problems, renamed
from edgemamba.train.checkpoint_files import first_line, read_file
from edgemamba.train.checkpoint_layouts import Which, find_weights
from edgemamba.train.models.model import Model
from edgemamba.train.registry import create_model, families

FORMAT = 1
#: Key of our own part of a training checkpoint.
METADATA_KEY = "edgemamba"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: the file.
        layout: where in the file the weights were and which prefixes their keys had, e.g. ``model`` or
            ``state_dict, prefix module.``.
        matched: number of tensors whose values are the file's.
        adapted: the others: resized, or left as they were in the model. Key -> how. Empty where the model is the file's.
        notes: differences that change no value: other names, and what was left out because the model has no place for it.
    """

    path: Path
    layout: str
    matched: int
    adapted: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {self.matched} tensors from {self.layout}"]
        lines += [f"  {key}: {how}" for key, how in self.adapted.items()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def load_checkpoint(model: nn.Module, path: str | Path, which: Which = "weights") -> LoadReport:
    """Give a model the weights of a checkpoint, official or our own.

    Reads ``.safetensors``, and whatever :func:`torch.save` wrote (``.pth``, ``.pth.tar``, ``.pt``, ``.ckpt``); the latter
    with ``weights_only=True`` and the stand-ins of :data:`edgemamba.train.checkpoint_files.STAND_INS` for the objects that
    training scripts leave in their files, so that no code in or named by a file is ever run. Where upstream's files have
    the weights is in :mod:`edgemamba.train.checkpoint_layouts`; what of a checkpoint is made to fit is in
    :func:`edgemamba.train.checkpoint_adapting.fit`, and the report says what of it was done. Anything else is refused, and
    the model is left as it was.

    Args:
        model: of :func:`~edgemamba.train.create_model` (a classifier, a dense one, a ``features_only`` one, which takes what it has
            kept, or a segmenter).
        path: of the file.
        which: ``ema`` for the moving average of the weights instead of the weights. Official files that hold both are
            evaluated with the weights; a file that holds nothing but the average is read for either.

    Raises:
        CheckpointError: unreadable, unsafe, of another architecture, without an average that was asked for, or with
            missing, unexpected or mis-shaped tensors.
    """
    path = Path(path)
    if which not in ("weights", "ema"):
        raise CheckpointError(f"which is {which!r}; 'weights' or 'ema' is needed")
    inner = _model(model)
    own = inner.state_dict()
    content = read_file(path)
    found = find_weights(content, path, own, which)
    fitted = fit(inner, found.state, _stated_grid(inner, content))
    refusals = problems(own, fitted.state)
    if refusals:
        other = _other_family(inner, found.state)
        raise CheckpointError(f"{path} does not fit {_name(inner)}{other}: {'; '.join(refusals)}")
    inner.load_state_dict(fitted.state, strict=True)
    matched = len(fitted.state.keys() - fitted.adapted.keys())
    return LoadReport(path, found.layout, matched, fitted.adapted, (*found.notes, *fitted.notes))


def count_classes(content: Mapping[str, Any], path: Path, name: str) -> int | None:
    """How many classes the classifier in a checkpoint tells apart; None where none is found.

    Args:
        content: of the file, as :func:`read_file` gives it.
        path: of the file, for messages.
        name: of the registered model that it is of.

    Raises:
        CheckpointError: it holds no weights.
        ModelError: there is no such model.
    """
    with torch.device("meta"):
        model = create_model(name)
    found = find_weights(content, path, model.state_dict())
    weight = renamed(model, found.state).get(f"{model.classifier_path}.weight")
    return None if weight is None or weight.dim() < 2 else int(weight.shape[0])


def _model(model: nn.Module) -> Model:
    """The model of ours that a module is, or is wrapped around."""
    inner = model if isinstance(model, Model) else getattr(model, "model", None)
    if not isinstance(inner, Model):
        raise CheckpointError(f"{type(model).__name__} is no model of edgemamba's: make it with create_model")
    return inner


def _stated_grid(model: Model, content: Mapping[str, Any]) -> Grid | None:
    """Rows and columns of the positions in a checkpoint of our own, which says them; None of any other."""
    metadata = content.get(METADATA_KEY)
    config = metadata.get("config") if isinstance(metadata, Mapping) else None
    if not isinstance(config, Mapping) or not hasattr(model.config, "grid"):
        return None
    known = {key: config[key] for key in ("img_size", "patch_size", "stride") if key in config}
    try:
        grid: Grid = dataclasses.replace(model.config, **known).grid
    except (TypeError, ValueError, EdgeMambaError):  # of another family, or damaged: what does not fit is said later
        return None
    return grid


def _other_family(model: Model, state: Mapping[str, Tensor]) -> str:
    """ ", it looks like ..." where the keys are of a registered family that is not the model's."""
    for family in families().values():
        if family.recognise(state.keys()) and not isinstance(model.config, family.config):
            return f", it looks like a {family.title} checkpoint ({family.name})"
    return ""


def _name(model: nn.Module) -> str:
    return str(getattr(model, "model_name", type(model).__name__))


def training_metadata(model: Model, class_names: Sequence[str]) -> dict[str, Any]:
    """What makes a training checkpoint complete: stored under ``METADATA_KEY`` beside Lightning's own entries.

    Plain values only, so that the file is read with ``weights_only=True``.
    """
    return {
        "format": FORMAT,
        "model_name": model.model_name,
        "config": dataclasses.asdict(model.config),
        "num_classes": model.num_classes,
        "class_names": list(class_names),
        **_input(model),
    }


def _input(model: Model) -> dict[str, Any]:
    """How its input is made: of pictures, or of volumes."""
    if model.volume is not None:
        return {"volume": model.volume.model_dump(mode="json")}
    return {"preprocessing": model.preprocessing.model_dump(mode="json")}


def read_training_checkpoint(path: str | Path) -> tuple[Model, list[str], Preprocessing | None]:
    """The model of a checkpoint that ``edgemamba train`` wrote, with its weights, in evaluation mode.

    Returns:
        The model, the names of its classes, and how pictures are made its input (None of volumes: ``model.volume`` says it).

    Raises:
        CheckpointError: not such a checkpoint, of a later format, or damaged.
    """
    path = Path(path)
    content = read_file(path)
    metadata = content.get(METADATA_KEY)
    if not isinstance(metadata, Mapping):
        raise CheckpointError(
            f"{path} was not written by edgemamba train: it does not say which model it is of; "
            "name the model and use load_checkpoint"
        )
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of format {metadata.get('format')!r}; this version reads format {FORMAT}")
    try:
        options = dict(metadata["config"]) | {"num_classes": int(metadata["num_classes"])}
        model: Model = create_model(str(metadata["model_name"]), **options)
        class_names = [str(name) for name in metadata["class_names"]]
        if model.volume is not None:
            model.volume = VolumeCard.model_validate(metadata["volume"])
        else:
            model.preprocessing = Preprocessing.model_validate(metadata["preprocessing"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {first_line(error)}") from None
    if len(class_names) != model.num_classes:
        raise CheckpointError(f"{path} names {len(class_names)} classes of {model.num_classes}")
    report = load_checkpoint(model, path)
    if report.adapted:
        raise CheckpointError(f"{path} contradicts its own metadata: {', '.join(report.adapted)}")
    return model.eval(), class_names, None if model.volume is not None else model.preprocessing
