"""What every backbone of this package is: a classifier with timm's manners and a description of itself."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing

# Last components of names of parameters that are no weights of a product: states, skips, positions, and biases that are
# stacked for several directions and so have more than the one axis by which timm's optimisers know a bias.
_NO_DECAY = re.compile(
    r"A(_b)?_log(s|_\d+)?|D(s|_b|_\d+)?|pos_embed|cls_token(_head|_tail)?|direction_Bs|dt_projs_bias"
)


class Backbone(nn.Module, ABC):
    """A classification backbone.

    A family says where its parts are in class attributes, and gets timm's manners for it:

    Attributes:
        classifier_path: name of the last layer, whose keys are ``{classifier_path}.weight`` and ``.bias``.
        norm_path: name of the norm over the last features (a :class:`torch.nn.BatchNorm2d` takes NCHW, others the channels
            last); None where the family has none.
        stem_paths: names of what comes before the first of ``feature_info``'s modules, the first convolution's first.
        first_conv: name of the convolution that reads the picture.
        feature_format: how :meth:`forward_features` lays its result out: ``NHWC``, ``NCHW`` or ``NLC`` (tokens).
        pooling: how :meth:`forward_head` comes from many positions to one, in timm's words: ``avg``, ``token``, ``max``.

    A model has:

    Attributes:
        config: the frozen dataclass it was built from; ``dataclasses.asdict`` makes it JSON.
        model_name: the registered name it was made by, or the family's.
        preprocessing: how a picture becomes its input.
        num_classes: outputs of the classifier; 0 where it was removed.
        num_features: channels that the classifier reads.
        global_pool: ``pooling``, or "" where :meth:`reset_classifier` took pooling and classifier away and
            :meth:`forward` returns what :meth:`forward_features` does.
        feature_info: what maps :meth:`forward_features` can hand out, one entry each, in timm's words: ``num_chs``,
            ``reduction`` (pixels a position stands for) and ``module`` (whose output it is).
        out_indices: of a dense backbone (upstream's detection and segmentation form): indices of ``feature_info`` whose
            maps, each through its own norm ``outnorm{i}``, :meth:`forward` returns instead of logits; empty for a classifier.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    classifier_path: str = "head"
    norm_path: str | None = None
    stem_paths: tuple[str, ...] = ("patch_embed", "pos_embed", "cls_token")
    first_conv: str = "patch_embed.proj"
    feature_format: str = "NHWC"
    pooling: str = "avg"

    config: Any
    model_name: str
    preprocessing: Preprocessing
    num_classes: int
    num_features: int
    feature_info: list[dict[str, Any]]
    out_indices: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.global_pool = self.pooling

    @abstractmethod
    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> the last features, before pooling.

        Args:
            maps: if given, the map of each entry of ``feature_info`` is appended: (B, num_chs, h, w), a stage's before its
                downsampling and without the family's last norm.
        """

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features of :meth:`forward_features` -> logits (B, num_classes), or the classifier's input (B, num_features)."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, 3, H, W) normalised pictures -> logits (B, num_classes); the maps of ``out_indices`` of a dense backbone."""
        if self.out_indices:
            maps: list[Tensor] = []
            self.forward_features(x, maps)
            return [self.get_submodule(f"outnorm{i}")(maps[i]) for i in self.out_indices]
        x = self.forward_features(x)
        return self.forward_head(x) if self.global_pool else x

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay (vectors aside, which it never should)."""
        return {name for name, _ in self.named_parameters() if _NO_DECAY.fullmatch(name.rpartition(".")[2])}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer: a Linear, or an Identity where it was removed."""
        return self.get_submodule(self.classifier_path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, freshly initialised.

        Args:
            num_classes: its outputs; 0 removes it.
            global_pool: "" removes the pooling too (with ``num_classes=0`` only); the family's ``pooling`` puts it back.

        Raises:
            ModelError: a pooling that the family does not have, or a classifier without one.
        """
        if global_pool is not None:
            if global_pool not in ("", self.pooling):
                raise ModelError(f"{self.model_name} pools by {self.pooling!r}, not {global_pool!r}")
            self.global_pool = global_pool
        if num_classes and not self.global_pool:
            raise ModelError(f"{self.model_name}: a classifier needs pooling; give global_pool={self.pooling!r}")
        like = next(self.parameters())
        self.num_classes = num_classes
        head = make_head(self.num_features, num_classes).to(device=like.device, dtype=like.dtype)
        self.set_submodule(self.classifier_path, head)


def make_head(features: int, num_classes: int) -> nn.Module:
    """A classifier initialised as all the families do it: truncated normal of deviation 0.02, zero bias."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(features, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
