"""A segmenter of pictures: any classification backbone of this package with a head for every pixel."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.model import Model
from edgemamba.train.models.segmentation_heads import (
    LEAST_CHANNELS,
    HeadName,
    SimplePyramid,
    make_segmentation_head,
    resize,
)

#: Options of a segmenter beside those of its backbone, and their defaults.
HEAD_DIM = 128


@functools.cache
def segmenter_config(kind: type) -> type:
    """A family's dataclass of options with those of the head after them, ``head`` and ``head_dim``.

    A subclass, so that what a family's configuration tells (its grid of positions, which family it is) it tells too, and flat, so
    that ``create_model(name, **dataclasses.asdict(config))`` makes the same model again.
    """
    fields: list[tuple[str, Any, Any]] = [
        ("head", HeadName, dataclasses.field(default="fpn")),
        ("head_dim", int, dataclasses.field(default=HEAD_DIM)),
    ]
    return dataclasses.make_dataclass(f"{kind.__name__}WithHead", fields, bases=(kind,), frozen=True)


class Segmenter(Model):
    """A backbone, a pyramid of its maps, and a head on them.

    Backbones of several resolutions give the map of each stage. Of those with one (Vim, LocalVim, PlainMamba) the last map
    becomes a simple pyramid of four.

    Args:
        backbone: a classifier, which is cut down to what the maps need.
        config: of a class that :func:`segmenter_config` made.

    Official weights of a classifier go into ``backbone``: ``load_checkpoint(segmenter.backbone, "official.pth")``.
    """

    task = "segmentation"
    classifier_path = "head.classifier"

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__()
        if backbone.out_indices:
            raise ModelError(
                f"{backbone.model_name}: out_indices and head do not go together; a head takes its own maps"
            )
        if config.num_classes < 2:
            raise ModelError(
                f"a segmenter tells 2 or more classes apart, the background among them; not {config.num_classes}"
            )
        if config.head_dim < LEAST_CHANNELS:
            raise ModelError(f"head_dim is {config.head_dim}; {LEAST_CHANNELS} or more is needed")
        self.config, self.model_name, self.num_classes = config, backbone.model_name, config.num_classes
        # Every pixel needs a class: the whole picture goes in, and nothing of it is cropped away.
        self.preprocessing = backbone.preprocessing.model_copy(update={"resize": "squash", "crop_pct": 1.0})
        info = backbone.feature_info
        plain = len({entry["reduction"] for entry in info}) == 1
        self._indices = backbone.prune_intermediate_layers(1 if plain else None, prune_norm=True)
        self.backbone = backbone
        self.pyramid: nn.Module = SimplePyramid(info[-1]["num_chs"]) if plain else nn.Identity()
        channels = self.pyramid.channels if isinstance(self.pyramid, SimplePyramid) else [i["num_chs"] for i in info]
        self.head = make_segmentation_head(config.head, channels, config.num_classes, config.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures -> logits (B, num_classes, H, W); of any size that the backbone takes."""
        maps: list[Tensor] = []
        self.backbone.forward_features(x, maps)
        taken = [maps[i] for i in self._indices]
        if isinstance(self.pyramid, SimplePyramid):
            taken = self.pyramid(taken[-1])
        return resize(self.head(taken), x.shape[2:])

    def absent_paths(self) -> tuple[str, ...]:
        """See :meth:`Model.absent_paths`."""
        return tuple(f"backbone.{path}" for path in self.backbone.absent_paths())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each block of the backbone in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)
