"""The settings of a run, layer upon layer: the defaults, a recipe, and what was given on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.recipes.recipe import Recipe, flat, load_recipe, nested
from edgemamba.train.registry import model_entry
from edgemamba.train.settings import TrainingSettings

GIVEN = "command line"
DEFAULT = "default"
# What of a recipe goes with another of its settings, and is not meant for what the user gives in its place.
_BELONGS = {"lr": {"lr_batch"}, "optimizer": {"betas", "opt_eps"}}


@dataclass(frozen=True)
class LayeredSettings:
    """Settings, and which layer each came from.

    Attributes:
        settings: of the run.
        recipe: the one that they begin with.
        origin: a field, as :func:`~edgemamba.train.recipes.recipe.flat` names them -> ``default``, ``recipe NAME`` or
            ``command line``.
    """

    settings: TrainingSettings
    recipe: Recipe | None
    origin: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """JSON-able."""
        about = None if self.recipe is None else self.recipe.model_dump(mode="json", exclude={"settings", "variants"})
        return {
            "settings": self.settings.model_dump(mode="json"),
            "origin": dict(self.origin),
            "recipe": about,
        }

    def print(self, console: Console) -> None:
        """A table of the settings; below it, what is known of the recipe."""
        unverified = {} if self.recipe is None else self.recipe.doubts(self.settings.model)
        table = Table("setting", "value", "from", box=None, header_style="bold", pad_edge=False)
        for name, value in flat(self.settings.model_dump(mode="json")).items():
            origin = self.origin[name]
            if name in unverified and origin not in (GIVEN, DEFAULT):
                origin += ", not verified"
            table.add_row(name, "-" if value in (None, "") else str(value), origin)
        console.print(table)
        if self.recipe is not None:
            lines = [f"recipe {self.recipe.name}: {self.recipe.title}"]
            lines += [f"source: {source}" for source in self.recipe.sources]
            lines += [f"not verified: {name}: {why}" for name, why in unverified.items()]
            lines += [f"not done here: {what}" for what in self.recipe.not_here]
            console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def lay_settings(given: Mapping[str, Any], recipe_name: str | None = None) -> LayeredSettings:
    """The settings of a run.

    Args:
        given: what the user said, by field (``augmentation.hflip``); it stands above the recipe. A learning rate that is
            given is the peak of this run: a recipe's ``lr_batch`` goes with the recipe's own rate, and its ``betas`` and
            ``opt_eps`` with its own optimiser.
        recipe_name: of :func:`~edgemamba.train.recipes.recipe.load_recipe`.

    Raises:
        TrainingError: no such recipe, it needs a checkpoint and none is given, no model is named, or a value is out of range.
        ModelError: there is no such model.
    """
    recipe = None if recipe_name is None else load_recipe(recipe_name)
    model = given.get("model") or (recipe.model if recipe is not None else None)
    if model is None:
        raise TrainingError("--model is needed: a name of `edgemamba models`, or a --recipe of one family")
    fields: dict[str, Any] = {"model": model, "out": f"runs/{model}", "data": ""}
    origin = dict.fromkeys(fields, DEFAULT)
    if recipe is not None:
        own = recipe.fields(model_entry(model).name)
        for chosen, belonging in _BELONGS.items():
            if chosen in given:
                own = {field: value for field, value in own.items() if field not in belonging}
        fields |= own | {"recipe": recipe_name}
        origin |= dict.fromkeys([*own, "recipe", *(["model"] if "model" not in given else [])], f"recipe {recipe.name}")
        if recipe.requires_checkpoint and given.get("checkpoint") is None:
            raise TrainingError(f"--recipe {recipe_name} begins with trained weights: name them with --checkpoint")
    fields |= given
    origin |= dict.fromkeys(given, GIVEN)
    settings = TrainingSettings.parse(**nested(fields))
    names = flat(settings.model_dump(mode="json"))
    return LayeredSettings(settings, recipe, {name: origin.get(name, DEFAULT) for name in names})


def explain_rate(settings: TrainingSettings, ranks: int) -> str | None:
    """One line on how the learning rate follows from the batch, where it does or a recipe's batch was another."""
    pictures = settings.step_pictures(ranks)
    if settings.lr_batch is not None:
        return (
            f"learning rate {settings.peak_lr(ranks):.3g}: {settings.lr:.3g} for {settings.lr_batch} pictures, scaled "
            f"linearly to the {pictures} of an update"
        )
    if settings.recipe is None:
        return None
    try:
        recipe = load_recipe(settings.recipe)
    except TrainingError:  # a file of the user's that is no longer there, or that changed: the settings are all known
        return None
    if recipe.total_batch in (None, pictures) or recipe.fields(settings.model).get("lr") != settings.lr:
        return None
    return (
        f"learning rate {settings.lr:.3g}: recipe {recipe.name} has it for {recipe.total_batch} pictures and names no rule for "
        f"the {pictures} of an update here, so it stays; --lr, --batch-size and --accumulate change that"
    )
