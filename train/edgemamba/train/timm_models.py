"""Every registered model under timm's roof: import this module, and ``timm.create_model("edgemamba_vim_tiny")`` works.

The names are this package's with ``edgemamba_`` before them (``timm.list_models("edgemamba_*")``), the keywords timm's
(``num_classes``, ``in_chans``, ``img_size``, ``drop_path_rate``, ``global_pool``, ``features_only`` with ``out_indices``) and any
option of the family's configuration. It is a module of its own, and ``edgemamba.train`` does not import it, because timm takes
longer to import than everything else that making a model needs.

No weights come with it, so ``pretrained=True`` needs to be told of a file; official ones of every family are read::

    timm.create_model("edgemamba_vim_tiny", pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": True})

TorchScript is not supported: ``torch.export`` is how these models leave Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import register_model as register_with_timm

from edgemamba.train.feature_maps import FeatureMaps
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.registry import ModelEntry, create_model, families, list_models, model_entry

PREFIX = "edgemamba_"

__all__: list[str] = []  # timm adds the names that it registers


def _backbone_class(entry: ModelEntry) -> type[Backbone]:
    """The class that a model is of."""
    build = families()[entry.family].build
    if not isinstance(build, type):
        with torch.device("meta"):
            build = type(build(entry.config))
    assert issubclass(build, Backbone)
    return build


def _default_cfg(entry: ModelEntry) -> dict[str, Any]:
    """What timm calls a pretrained configuration: the published evaluation, and where the first and last layers are."""
    kind, preprocessing = _backbone_class(entry), entry.preprocessing
    assert preprocessing is not None  # a classifier's
    squash = preprocessing.resize != "center_crop"
    return {
        "input_size": (entry.config.in_chans, *preprocessing.size),
        "fixed_input_size": not getattr(entry.config, "dynamic_img_size", True),
        "interpolation": preprocessing.interpolation,
        "crop_pct": 1.0 if preprocessing.resize == "squash" else preprocessing.crop_pct,
        "crop_mode": "squash" if squash else "center",
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "num_classes": entry.config.num_classes,
        "pool_size": None,  # they take more sizes than one
        "first_conv": kind.first_conv,
        "classifier": kind.classifier_path,
        "paper_ids": families()[entry.family].paper.rpartition(", ")[2],
        "origin_url": None,
    }


def _make(name: str, global_pool: str | None = None, **options: Any) -> Backbone:
    """A model with timm's keywords."""
    if not options.get("drop_rate") and not hasattr(model_entry(name).config, "drop_rate"):
        options.pop("drop_rate", None)  # timm's training script always gives one
    model = create_model(name, **options)
    if global_pool is not None:
        model.reset_classifier(model.num_classes, global_pool)
    return model


def _register(entry: ModelEntry) -> None:
    """Give timm the function that makes a model."""

    def make(pretrained: bool = False, **options: Any) -> Any:
        return build_model_with_cfg(
            lambda **kwargs: _make(entry.name, **kwargs),
            make.__name__,
            pretrained,
            # The format too: of a class timm 1.0.15 does not see that it is its getter, and gives it the model's own.
            feature_cfg={"feature_cls": FeatureMaps, "out_indices": None, "output_fmt": "NCHW"},
            **options,
        )

    make.__name__ = make.__qualname__ = f"{PREFIX}{entry.name}"
    make.__doc__ = f"{families()[entry.family].title}: {entry.name}."
    globals()[make.__name__] = make
    entrypoint: Callable[..., Any] = make
    register_with_timm(entrypoint)


_ENTRIES = [model_entry(name) for name in list_models(task="classification")]
# timm looks for this name in the module of the functions that it registers.
default_cfgs = generate_default_cfgs({f"{PREFIX}{entry.name}": _default_cfg(entry) for entry in _ENTRIES})
for _entry in _ENTRIES:
    _register(_entry)
