"""What every backbone of this package is: a classifier with timm's manners and a description of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from edgemamba.runtime.preprocessing import Preprocessing


class Backbone(nn.Module, ABC):
    """A classification backbone.

    Attributes:
        config: the frozen dataclass it was built from; ``dataclasses.asdict`` makes it JSON.
        model_name: the registered name it was made by, or the family's.
        preprocessing: how a picture becomes its input.
        num_classes: outputs of the classifier; 0 where it was removed.
        num_features: channels that the classifier reads.
        feature_info: what maps :meth:`forward_features` can hand out, one entry each, in timm's words: ``num_chs``,
            ``reduction`` (pixels a position stands for) and ``module`` (whose output it is).
        out_indices: of a dense backbone (upstream's detection and segmentation form): indices of ``feature_info`` whose
            maps, each through its own norm ``outnorm{i}``, :meth:`forward` returns instead of logits; empty for a classifier.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    config: Any
    model_name: str
    preprocessing: Preprocessing
    num_classes: int
    num_features: int
    head: nn.Module
    feature_info: list[dict[str, Any]]
    out_indices: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

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
        if not self.out_indices:
            return self.forward_head(self.forward_features(x))
        maps: list[Tensor] = []
        self.forward_features(x, maps)
        return [self.get_submodule(f"outnorm{i}")(maps[i]) for i in self.out_indices]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay (vectors and biases aside, which it never should)."""
        marked = (
            "A_log",
            "A_b_log",
            "A_logs",
            "Ds",
            "D",
            "D_b",
            "pos_embed",
            "cls_token",
            "cls_token_head",
            "cls_token_tail",
        )
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in marked}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer: a Linear, or an Identity where it was removed."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one, freshly initialised; 0 removes it."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = make_head(self.num_features, num_classes).to(device=like.device, dtype=like.dtype)


def make_head(features: int, num_classes: int) -> nn.Module:
    """A classifier initialised as all the families do it: truncated normal of deviation 0.02, zero bias."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(features, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
