"""Names of models: what is registered, how it is found, and how a model is made from a name or from upstream's flags."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import ValidationError
from torch import Tensor

from edgemamba.runtime.errors import EdgeMambaError, ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.model import Model, Task

if TYPE_CHECKING:
    from edgemamba.train.feature_maps import FeatureMaps
    from edgemamba.train.models.segmamba import SegMamba
    from edgemamba.train.models.segmentation_heads import HeadName
    from edgemamba.train.models.segmenter import Segmenter


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: as in the names of its models and in the folders of golden vectors.
        title: for people.
        paper: where it is described.
        config: the dataclass of its options; a union of those of several architectures.
        build: config -> model.
        from_upstream: the official constructor's keywords -> config.
        recognise: whether a checkpoint's keys are of this family.
        adapt: a checkpoint's tensors under other names or in other shapes that upstream has used, without wrappers' prefixes
            -> the same under those of the model; what it does not know it leaves. None where there is one form only.
        task: what its models are for.
    """

    name: str
    title: str
    paper: str
    config: type | UnionType
    build: Callable[[Any], Model]
    from_upstream: Callable[[Mapping[str, Any]], Any]
    recognise: Callable[[Collection[str]], bool]
    adapt: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    task: Task = "classification"


@dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
        name: what :func:`create_model` takes.
        family: name of its :class:`Family`.
        config: its options, with the classes it was published with.
        preprocessing: of its published evaluation; None of models of volumes.
        params: number of parameters with that configuration.
        aliases: other names that :func:`create_model` takes: upstream's.
        top1: published top-1 accuracy on ImageNet-1k in per cent; None where there is no such figure.
        source: where it was published, and with what condition.
    """

    name: str
    family: str
    config: Any
    preprocessing: Preprocessing | None
    params: int
    aliases: tuple[str, ...] = ()
    top1: float | None = None
    source: str = ""

    @property
    def task(self) -> Task:
        """What it is for."""
        return _FAMILIES[self.family].task

    @property
    def input_size(self) -> tuple[int, ...]:
        """Height and width in pixels; of models of volumes depth, height and width of a patch in voxels."""
        size: tuple[int, ...] = self.preprocessing.size if self.preprocessing else self.config.img_size
        return size


# One module a family; each registers itself and its models when it is imported.
_MODULES = ("vim", "medmamba", "vmamba", "efficientvmamba", "mambavision", "local_mamba", "plain_mamba", "segmamba")

_FAMILIES: dict[str, Family] = {}
_MODELS: dict[str, ModelEntry] = {}
_ALIASES: dict[str, str] = {}


def register_family(family: Family) -> Family:
    """Add a family; a second one of the same name is a mistake."""
    if family.name in _FAMILIES:
        raise ValueError(f"family {family.name!r} is registered twice")
    _FAMILIES[family.name] = family
    return family


def register_model(entry: ModelEntry) -> ModelEntry:
    """Add a model and its aliases; a name taken twice is a mistake."""
    for name in (entry.name, *entry.aliases):
        if name in _MODELS or name in _ALIASES:
            raise ValueError(f"model {name!r} is registered twice")
    _MODELS[entry.name] = entry
    _ALIASES.update(dict.fromkeys(entry.aliases, entry.name))
    return entry


def families(task: Task | None = None) -> dict[str, Family]:
    """All registered families by name; those of one task if one is given."""
    _load()
    return {name: family for name, family in _FAMILIES.items() if task in (None, family.task)}


def list_models(pattern: str | None = None, *, task: Task | None = None) -> list[str]:
    """Names of the registered models, sorted.

    Args:
        pattern: a shell pattern (``"vim*"``) that they match. Aliases match too, and give the name they stand for.
        task: what they are for: ``classification`` (any of these becomes a segmenter by
            ``create_model(name, num_classes, head="fpn")``) or ``segmentation``.
    """
    _load()
    matching = set(_MODELS)
    if pattern is not None:
        aliases = fnmatch.filter(_ALIASES, pattern)
        matching = set(fnmatch.filter(_MODELS, pattern)) | {_ALIASES[alias] for alias in aliases}
    return sorted(name for name in matching if task in (None, _MODELS[name].task))


def model_entry(name: str) -> ModelEntry:
    """The entry of a name or alias.

    Raises:
        ModelError: there is none; the message names the nearest.
    """
    _load()
    entry = _MODELS.get(_ALIASES.get(name, name))
    if entry is None:
        raise ModelError(f"model {name!r} is not known; {_nearest(name, _MODELS)} (all: edgemamba models)")
    return entry


@overload
def create_model(  # type: ignore[overload-overlap]  # of a name known only when it runs, callers that care ask for its task
    name: Literal["segmamba"], num_classes: int | None = None, **options: Any
) -> SegMamba: ...
@overload
def create_model(name: str, num_classes: int, *, head: HeadName, **options: Any) -> Segmenter: ...
@overload
def create_model(
    name: str, num_classes: int | None = None, *, features_only: Literal[True], **options: Any
) -> FeatureMaps: ...
@overload
def create_model(name: str, num_classes: int | None = None, **options: Any) -> Backbone: ...
def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    features_only: bool = False,
    head: str | None = None,
    **options: Any,
) -> Model | FeatureMaps:
    """Make a model with fresh weights.

    Args:
        name: a registered name or alias, see :func:`list_models`.
        num_classes: outputs; by default as published; 0 for a backbone without a classifier.
        features_only: make it a :class:`edgemamba.train.feature_maps.FeatureMaps`, which returns a list of feature maps;
            ``out_indices`` says which, by default one a stage (of a model with one resolution: those of the last 3 blocks).
            They are the classifier's own, without norms; upstream's dense backbones, with a trained norm for each map, are
            made by ``out_indices`` alone, in families that have them.
        head: ``fpn`` or ``upernet``: make it a :class:`~edgemamba.train.models.segmenter.Segmenter` of ``num_classes`` classes, the
            background among them, whose logits have the size of the picture; ``head_dim`` is the head's width.
        **options: any field of the family's configuration, e.g. ``img_size=512`` (or ``(height, width)``),
            ``drop_path_rate=0.1``.

    Raises:
        ModelError: unknown name or option (the message names the nearest), or a value that the family refuses.
    """
    entry = model_entry(name)
    if features_only:
        if entry.task != "classification" or head is not None:
            what = f"with the head {head}" if head is not None else f"for {entry.task}"
            raise ModelError(f"{entry.name} is {what}; features_only is for classifiers' backbones")
        from edgemamba.train.feature_maps import FeatureMaps  # imports timm, which takes longer than all the rest

        indices = options.pop("out_indices", None)
        return FeatureMaps(create_model(name, num_classes, **options), indices)
    if num_classes is not None:
        options["num_classes"] = num_classes
    if head is not None:
        return _create_segmenter(entry, {"head": head, **options})
    return _build(entry, _configure(entry, type(entry.config), options))


def _create_segmenter(entry: ModelEntry, options: dict[str, Any]) -> Segmenter:
    """A backbone with a head."""
    from edgemamba.train.models.segmenter import Segmenter, segmenter_config  # which few need

    if entry.task != "classification":
        raise ModelError(f"{entry.name} is for {entry.task} as it is; a head is for classifiers' backbones")
    if "num_classes" not in options:
        raise ModelError(f"{entry.name} with a head needs num_classes, the background counted")
    kind: Any = type(entry.config)
    config = _configure(entry, segmenter_config(kind), options)
    of_backbone = {field.name: getattr(config, field.name) for field in dataclasses.fields(entry.config)}
    backbone = _build(entry, dataclasses.replace(entry.config, **{**of_backbone, "num_classes": 0}))
    assert isinstance(backbone, Backbone)
    return Segmenter(backbone, config)


def _configure(entry: ModelEntry, kind: type, options: Mapping[str, Any]) -> Any:
    """A configuration: the entry's, but for these options. ``kind`` is its class, or one that adds fields to it."""
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise ModelError(f"{entry.name} has no option {option!r}; {_nearest(option, known)}")
    published = {field.name: getattr(entry.config, field.name) for field in dataclasses.fields(entry.config)}
    try:
        return kind(**{**published, **options})
    except EdgeMambaError:
        raise  # some are ValueErrors too
    except (TypeError, ValueError) as error:  # a value of another kind than the option's, e.g. text for a number
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ModelError(f"{entry.name} cannot be made with {given}: {error}") from None


def _build(entry: ModelEntry, config: Any) -> Model:
    try:
        model = _FAMILIES[entry.family].build(config)
    except ValidationError as error:  # of what describes its input
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ModelError(f"{entry.name}: {reason}") from None
    model.model_name = entry.name
    if entry.preprocessing is not None:
        model.preprocessing = entry.preprocessing.model_copy(update={"size": model.config.img_size})
    return model


def model_from_upstream_config(family: str, config: Mapping[str, Any]) -> Model:
    """Make a model from the keywords of the official code's constructor, as they stand in golden sidecars.

    Raises:
        ModelError: the family is not registered, or a flag asks for something this package does not have.
    """
    known = families()
    if family not in known:
        raise ModelError(f"family {family!r} is not known; {_nearest(family, known)}")
    entry = known[family]
    return entry.build(entry.from_upstream(config))


def pick(family: str, config: Mapping[str, Any], names: Mapping[str, str], ignored: Iterable[str]) -> dict[str, Any]:
    """Upstream's keywords under our names, for the families' ``from_upstream``.

    Args:
        family: for the message.
        config: upstream's keywords.
        names: upstream's keyword -> our option.
        ignored: keywords that change nothing, or that the caller reads itself.

    Raises:
        ModelError: a keyword in neither.
    """
    unknown = sorted(set(config) - set(names) - set(ignored))
    if unknown:
        raise ModelError(f"{family}: upstream flags that are not supported: {', '.join(unknown)}")
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(sorted(words))}"


def _load() -> None:
    """Import the families, which register themselves; not at the top, because they import this module."""
    for module in _MODULES:
        importlib.import_module(f"edgemamba.train.models.{module}")
