"""A recipe: settings of training under a name, with where they come from and what could not be checked."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.data.transforms import Augmentation
from edgemamba.train.settings import TrainingSettings

# What belongs to a run, not to a way of training.
_OF_A_RUN = frozenset({"recipe", "model", "config", "data", "out", "fold", "checkpoint"})
_FIELDS = frozenset(TrainingSettings.model_fields) - _OF_A_RUN


class Recipe(BaseModel):
    """Settings that a run begins with; what is given on the command line stands above them.

    Attributes:
        name: of the file, without its suffix.
        title: one line for people.
        model: the model trained where none is named.
        sources: where the figures come from: paper and section, file of a repository.
        total_batch: pictures of one update upstream, on all devices together.
        requires_checkpoint: it begins with trained weights.
        settings: fields of :class:`~edgemamba.train.settings.TrainingSettings`; of ``augmentation`` some of its fields.
        variants: those of single models that differ: a name or a shell pattern -> fields. The later ones win.
        unverified: a field (``augmentation.crop_scale``), or one of some models (``drop_path@vim_base``) -> why its figure is
            not known to be the published one.
        not_here: what upstream does and this package does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    model: str | None = None
    sources: tuple[str, ...] = Field(min_length=1)
    total_batch: int | None = None
    requires_checkpoint: bool = False
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    unverified: dict[str, str] = Field(default_factory=dict)
    not_here: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fields_exist(self) -> Recipe:
        for fields in (self.settings, *self.variants.values()):
            for name in flat(fields):
                whole, _, part = name.partition(".")
                if whole not in _FIELDS or (part and part not in Augmentation.model_fields):
                    near = difflib.get_close_matches(name, _FIELDS, n=1)
                    raise ValueError(f"there is no setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return self

    def fields(self, model: str) -> dict[str, Any]:
        """Its settings for a model, as :func:`flat` has them."""
        fields = flat(self.settings)
        for pattern, own in self.variants.items():
            if fnmatch.fnmatchcase(model, pattern):
                fields |= flat(own)
        return fields

    def doubts(self, model: str) -> dict[str, str]:
        """What of ``unverified`` concerns a model: field -> why."""
        split = [(*name.partition("@")[::2], why) for name, why in self.unverified.items()]
        return {field: why for field, pattern, why in split if fnmatch.fnmatchcase(model, pattern or "*")}


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of ``augmentation`` as ``augmentation.hflip``, ..., so that layers of them can be laid over each
    other."""
    flattened: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "augmentation" and isinstance(value, Mapping):
            flattened |= {f"augmentation.{part}": each for part, each in value.items()}
        else:
            flattened[name] = value
    return flattened


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flat`: what :meth:`TrainingSettings.parse` takes."""
    whole: dict[str, Any] = {}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if inner:
            whole.setdefault(outer, {})[inner] = value
        else:
            whole[outer] = value
    return whole


def list_recipes() -> list[str]:
    """Names of the recipes of this package, sorted."""
    folder = files("edgemamba.train.recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """A recipe of this package by its name, or one of your own by the path of its ``.yaml`` file.

    Raises:
        TrainingError: there is none of that name, or the file cannot be read or is no recipe.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(
                f"--recipe {name} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        return _parse(path.stem, name, text)
    known = list_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
        raise TrainingError(f"--recipe {name} is not known; {hint}, or the path of a .yaml file")
    return _parse(name, name, files("edgemamba.train.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def _parse(name: str, shown: str, text: str) -> Recipe:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise TrainingError(
            f"--recipe {shown} is no YAML: {getattr(error, 'problem', 'it cannot be read')}{line}"
        ) from None
    if not isinstance(content, dict):
        raise TrainingError(f"--recipe {shown} is no recipe: title, sources and settings are needed")
    try:
        return Recipe(**{str(key): value for key, value in content.items()} | {"name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise TrainingError(f"--recipe {shown}: {field + ': ' if field else ''}{message}") from None
