"""A state dictionary made to fit a model: what may differ, and how the difference is bridged or left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from edgemamba.train.models.model import Model
from edgemamba.train.models.position import insert_rows, resize_grid, split_rows, upstream_resize_pos_embed
from edgemamba.train.models.segmenter import Segmenter
from edgemamba.train.registry import Family, families

Grid = tuple[int, int]

_SHOWN = 4


@dataclass
class Fitted:
    """A state dictionary on its way into a model.

    Attributes:
        state: key -> tensor, by the model's names.
        adapted: tensors whose values are not the file's: resized, or left as they were in the model. Key -> how.
        notes: differences of form, and what the model has no place for; the values that it takes are the file's.
    """

    state: dict[str, Tensor]
    adapted: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def family_of(model: Model) -> Family | None:
    """The family of a model, by its configuration."""
    return next((family for family in families().values() if isinstance(model.config, family.config)), None)


def fit(model: Model, state: Mapping[str, Tensor], grid: Grid | None = None) -> Fitted:
    """Bridge the differences between a checkpoint and a model that are understood; others stay as they are.

    - names and shapes that upstream has used at other times (``Family.adapt``); a 1x1 convolution for a Linear;
    - parts that the model was made or cut down without: left out;
    - a classifier of another number of classes: left as it is in the model;
    - norms of a dense backbone's maps that a classifier's checkpoint does not have: left as they are in the model;
    - position embeddings and rotation tables of another grid: resized.

    Args:
        model: that it is for.
        state: of the file.
        grid: rows and columns that its position embedding is of, where the file says so; else it is taken for a square, as
            all official ones are.
    """
    own = model.state_dict()
    fitted = Fitted(dict(state))
    _rename(model, fitted)
    _leave_out_absent(model, own, fitted)
    _adapt_shapes(own, fitted)
    _adapt_classifier(model, own, fitted)
    _adapt_dense_norms(model, own, fitted)
    _adapt_positions(model, own, fitted, grid)
    return fitted


def problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dictionary from fitting, in a few words each."""
    both = [key for key in own if key in state]
    kinds = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} {state[key].dtype} instead of {own[key].dtype}"
            for key in both
            if state[key].is_floating_point() != own[key].is_floating_point()
        ],
    }
    return [f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in kinds.items() if keys]


def renamed(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary by the names of the model's family, whichever of upstream's names it has."""
    family = family_of(model)
    if family is None or family.adapt is None:
        return dict(state)
    # Of a segmenter only the backbone is of its family.
    prefix = "backbone." if isinstance(model, Segmenter) else ""
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = {key: value for key, value in state.items() if not key.startswith(prefix)}
    return {**others, **{f"{prefix}{key}": value for key, value in family.adapt(inner).items()}}


def _rename(model: Model, fitted: Fitted) -> None:
    state = renamed(model, fitted.state)
    gone = [key for key in fitted.state if key not in state]
    if gone:
        fitted.notes.append(f"{len(gone)} tensors under other names of upstream's ({_shorten(gone)})")
    fitted.state = state


def _leave_out_absent(model: Model, own: Mapping[str, Tensor], fitted: Fitted) -> None:
    for path in model.absent_paths():
        keys = [key for key in fitted.state if key.startswith(f"{path}.") and key not in own]
        for key in keys:
            del fitted.state[key]
        if keys:
            fitted.notes.append(f"{path}: {len(keys)} tensors left out, the model was made without")


def _adapt_shapes(own: Mapping[str, Tensor], fitted: Fitted) -> None:
    """Matrices that are stored as 1x1 convolutions, and the reverse."""
    for key, value in fitted.state.items():
        shape = own[key].shape if key in own else value.shape
        if {value.dim(), len(shape)} == {2, 4} and (*value.shape, 1, 1)[:4] == (*shape, 1, 1)[:4]:
            fitted.state[key] = value.reshape(shape)
            fitted.notes.append(f"{key}: {tuple(value.shape)} read as {tuple(shape)}")


def _adapt_classifier(model: Model, own: Mapping[str, Tensor], fitted: Fitted) -> None:
    name, bias = f"{model.classifier_path}.weight", f"{model.classifier_path}.bias"
    theirs, ours = fitted.state.get(name), own.get(name)
    if theirs is None or ours is None or theirs.dim() < 2 or theirs.dim() != ours.dim():
        return
    if theirs.shape[0] == ours.shape[0] or theirs.shape[1:] != ours.shape[1:]:
        return
    for key in (name, bias):
        if key in own and key in fitted.state:
            fitted.state[key] = own[key]
            fitted.adapted[key] = (
                f"{theirs.shape[0]} classes in the file, {ours.shape[0]} in the model: left as it was, untrained"
            )


def _adapt_dense_norms(model: Model, own: Mapping[str, Tensor], fitted: Fitted) -> None:
    norms = [key for key in own if key.partition(".")[0] in {f"outnorm{i}" for i in model.out_indices}]
    if any(key in fitted.state for key in norms):
        return
    for key in norms:
        fitted.state[key] = own[key]
        fitted.adapted[key] = "not in the file, which is a classifier's: left as it was, untrained"


def _adapt_positions(model: Model, own: Mapping[str, Tensor], fitted: Fitted, grid: Grid | None) -> None:
    """Resize what was learned or made for another grid."""
    ours_grid: Grid | None = getattr(model.config, "grid", None)
    if ours_grid is None:
        return
    for key, ours in own.items():
        name, theirs = key.rpartition(".")[2], fitted.state.get(key)
        if name not in ("pos_embed", "freqs_cos", "freqs_sin") or theirs is None or theirs.dim() != ours.dim():
            continue
        # As many positions may be those of another grid, of 2 x 8 instead of 4 x 4.
        if theirs.shape == ours.shape and grid in (None, ours_grid):
            continue
        tables = ours.dim() == 2
        resized = _resize_tokens(model, theirs[None] if tables else theirs, ours[None] if tables else ours, grid)
        if resized is not None:
            value, before = resized
            fitted.state[key] = value[0] if tables else value
            fitted.adapted[key] = (
                f"resized from a grid of {before[0]}x{before[1]} to {ours_grid[0]}x{ours_grid[1]} (bicubic), for fine-tuning"
            )


def _resize_tokens(model: Model, theirs: Tensor, ours: Tensor, before: Grid | None) -> tuple[Tensor, Grid] | None:
    """(1, L, C) rows of another grid's positions for the model's (1, L', C), and that grid; None where that is not it."""
    after: Grid = model.config.grid
    if theirs.dim() != 3 or theirs.shape[0] != 1 or theirs.shape[2] != ours.shape[2] or not theirs.is_floating_point():
        return None
    extra = ours.shape[1] - math.prod(after)
    if before is None:
        side = math.isqrt(max(theirs.shape[1] - extra, 0))
        before = side, side
    if extra < 0 or min(before) == 0 or math.prod(before) + extra != theirs.shape[1]:
        return None
    theirs = theirs.float()
    family = family_of(model)
    if extra <= 1 and before[0] == before[1] and family is not None and family.name == "vim":
        return upstream_resize_pos_embed(theirs, after, extra), before
    cls, patches = split_rows(theirs, model.config.cls_rows(math.prod(before)) if extra else [])
    resized = resize_grid(patches, before, after)
    return insert_rows(resized, cls, model.config.cls_rows(math.prod(after)) if extra else []), before


def _shorten(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return shown + (f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
