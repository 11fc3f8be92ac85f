"""Checkpoints: read without running anything that is in them, recognised by their keys, fitted loudly to a model."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgemamba.runtime.errors import CheckpointError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.position import upstream_resize_pos_embed
from edgemamba.train.registry import create_model, families

FORMAT = 1
#: Key of our own part of a training checkpoint.
METADATA_KEY = "edgemamba"

# What a pickle may hold beside tensors and plain containers. Namespaces are training scripts' arguments; nothing of one is
# read or run, but the official files cannot be opened without it.
ALLOWED_CLASSES = (argparse.Namespace,)

# Where the weights are, in the order of preference: official files keep an average of the weights beside them and are
# evaluated with the weights themselves, so "model" comes before its average.
_LAYOUTS = ("state_dict", "model", "model_state_dict", "model_ema", "ema_model")
_PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
_SHOWN = 4


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: the file.
        layout: where in the file the weights were and which prefixes their keys had, e.g. ``model`` or
            ``state_dict, prefix module.``.
        matched: number of tensors taken as they were.
        adapted: tensors that were made to fit or left as they were in the model, with how: key -> one line.
    """

    path: Path
    layout: str
    matched: int
    adapted: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {self.matched} tensors from {self.layout}"]
        return "\n".join(lines + [f"  {key}: {how}" for key, how in self.adapted.items()])


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadReport:
    """Give a model the weights of a checkpoint, official or our own.

    Reads ``.safetensors``, and whatever :func:`torch.save` wrote (``.pth``, ``.pth.tar``, ``.pt``, ``.ckpt``); the latter
    with ``weights_only=True`` and ``argparse.Namespace`` allowed, so that no code in a file is ever run. Weights may lie at
    the top or under ``state_dict``, ``model``, ``model_state_dict`` or ``model_ema``, with the prefixes ``module.``,
    ``model.``, ``backbone.`` in any nesting.

    Two differences are bridged, and reported: a classifier for another number of classes is left out (the model keeps its
    own, untrained one), and a position embedding for another grid is resized as upstream's fine-tuning does it (see
    :func:`edgemamba.train.models.position.upstream_resize_pos_embed`). Anything else is refused, and the model is left as it
    was.

    Raises:
        CheckpointError: unreadable, unsafe, of another architecture, or with missing, unexpected or mis-shaped tensors.
    """
    path = Path(path)
    state, layout = find_weights(read_file(path), path)
    own = model.state_dict()
    adapted: dict[str, str] = {}
    state = dict(state)
    _adapt_classifier(model, own, state, adapted)
    _adapt_positions(model, own, state, adapted)
    problems = _problems(own, state)
    if problems:
        other = _other_family(model, state)
        raise CheckpointError(f"{path} does not fit {_name(model)}{other}: {'; '.join(problems)}")
    model.load_state_dict(state, strict=True)
    return LoadReport(path, layout, len(state.keys() - adapted.keys()), adapted)


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file: a dictionary of tensors, plain values and inert Namespaces, all on the CPU.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or it needs code of its own to be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(list(ALLOWED_CLASSES)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {_pickle_reason(error)}") from None
    except KeyError:  # what the unpickler makes of text: the key is a byte of it, and says nothing to a reader
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception as error:  # a damaged file makes the readers fail in any way they can
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def find_weights(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dictionary within a checkpoint, without prefixes, and where it was.

    Raises:
        CheckpointError: there is none.
    """
    layout, state = "the top level", content
    for key in _LAYOUTS:
        if isinstance(content.get(key), Mapping):
            layout, state = key, content[key]
            break
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or (layout != "the top level" and len(tensors) < len(state)):
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(state.items())[:_SHOWN])
        raise CheckpointError(f"{path} holds no state dictionary that can be read; at {layout}: {kinds or 'nothing'}")
    stripped: list[str] = []
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
        stripped.append(prefix)
    return tensors, f"{layout}, prefix {''.join(stripped)}" if stripped else layout


def _adapt_classifier(
    model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor], adapted: dict[str, str]
) -> None:
    """Leave out a classifier of another number of classes, or of a model that has none."""
    weight = state.get("head.weight")
    if weight is None or weight.dim() != 2 or not isinstance(model, Backbone):
        return
    if "head.weight" not in own:
        for key in ("head.weight", "head.bias"):
            if state.pop(key, None) is not None:
                adapted[key] = "left out: the model has no classifier"
        return
    if weight.shape[0] == own["head.weight"].shape[0] or weight.shape[1] != own["head.weight"].shape[1]:
        return
    for key in ("head.weight", "head.bias"):
        if key in own and key in state:
            state[key] = own[key]
            adapted[key] = (
                f"{weight.shape[0]} classes in the file, {own['head.weight'].shape[0]} in the model: left as it was, untrained"
            )


def _adapt_positions(
    model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor], adapted: dict[str, str]
) -> None:
    """Resize a position embedding of another grid, where the model is a Vim with one class token or none."""
    theirs, ours = state.get("pos_embed"), own.get("pos_embed")
    config = getattr(model, "config", None)
    if theirs is None or ours is None or theirs.shape == ours.shape or theirs.dim() != 3 or not hasattr(config, "grid"):
        return
    extra = ours.shape[1] - math.prod(config.grid)  # type: ignore[union-attr]
    side = math.isqrt(max(theirs.shape[1] - extra, 0))
    if theirs.shape[0] != 1 or theirs.shape[2] != ours.shape[2] or extra > 1 or side * side + extra != theirs.shape[1]:
        return
    state["pos_embed"] = upstream_resize_pos_embed(theirs, config.grid, extra)  # type: ignore[union-attr]
    rows, columns = config.grid  # type: ignore[union-attr]
    adapted["pos_embed"] = f"resized from a grid of {side}x{side} to {rows}x{columns} (bicubic), for fine-tuning"


def _problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dictionary from fitting, in a few words each."""
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    kinds = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": shapes,
    }
    return [f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in kinds.items() if keys]


def _other_family(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """ ", it looks like ..." where the keys are of a registered family that is not the model's."""
    for family in families().values():
        if family.recognise(state.keys()) and not isinstance(getattr(model, "config", None), family.config):
            return f", it looks like a {family.title} checkpoint ({family.name})"
    return ""


def _shorten(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return shown + (f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _name(model: nn.Module) -> str:
    return str(getattr(model, "model_name", type(model).__name__))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _pickle_reason(error: BaseException) -> str:
    """One line for PyTorch's paragraph about what it would not unpickle."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return f"it asks to run or build {asked[1]}, and only weights are read; save its state_dict() alone"
    reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return f"it is not a checkpoint, or is damaged: {reason.splitlines()[0][:120]}"


def training_metadata(model: Backbone, class_names: Sequence[str]) -> dict[str, Any]:
    """What makes a training checkpoint complete: stored under ``METADATA_KEY`` beside Lightning's own entries.

    Plain values only, so that the file is read with ``weights_only=True``.
    """
    return {
        "format": FORMAT,
        "model_name": model.model_name,
        "config": dataclasses.asdict(model.config),
        "num_classes": model.num_classes,
        "class_names": list(class_names),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
    }


def read_training_checkpoint(path: str | Path) -> tuple[Backbone, list[str], Preprocessing]:
    """The model of a checkpoint that ``edgemamba train`` wrote, with its weights, in evaluation mode.

    Returns:
        The model, the names of its classes, and how pictures are made its input.

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
        model = create_model(str(metadata["model_name"]), **options)
        class_names = [str(name) for name in metadata["class_names"]]
        model.preprocessing = Preprocessing.model_validate(metadata["preprocessing"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {_first_line(error)}") from None
    if len(class_names) != model.num_classes:
        raise CheckpointError(f"{path} names {len(class_names)} classes of {model.num_classes}")
    report = load_checkpoint(model, path)
    if report.adapted:
        raise CheckpointError(f"{path} contradicts its own metadata: {', '.join(report.adapted)}")
    return model.eval(), class_names, model.preprocessing
