"""What every backbone of this package is: a classifier with timm's manners and a description of itself."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.train.models.model import Model


class Backbone(Model, ABC):
    """A classification backbone.

    A family says where its parts are in these attributes (of the class, or set in ``__init__`` where they depend on the
    configuration), and gets timm's manners for it:

    Attributes:
        norm_path: name of the norm over the last features (a :class:`torch.nn.BatchNorm2d` takes NCHW, others the channels
            last); None where the family has none.
        first_conv: name of the convolution that reads the picture.
        output_fmt: how :meth:`forward_features` lays its result out: ``NHWC``, ``NCHW`` or ``NLC`` (tokens).
        pooling: how :meth:`forward_head` comes from many positions to one, in timm's words: ``avg``, ``token``, ``max``.

    A model has, beside what :class:`~edgemamba.train.models.model.Model` lists:

    Attributes:
        num_classes: outputs of the classifier; 0 where it was removed.
        num_features: channels that the classifier reads.
        feature_info: what maps :meth:`forward_features` can hand out, one entry each, in timm's words: ``num_chs``,
            ``reduction`` (pixels a position stands for) and ``module`` (whose output it is: ``layers.0``, or
            ``backbone.layers.0``, an entry of one ModuleList in its order).
        out_indices: of a dense backbone (upstream's detection and segmentation form): indices of ``feature_info`` whose
            maps, each through its own norm ``outnorm{i}``, :meth:`forward` returns instead of logits; empty for a classifier.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    norm_path: str | None = None
    first_conv: str = "patch_embed.proj"
    output_fmt: str = "NHWC"
    pooling: str = "avg"

    num_features: int
    feature_info: list[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self._pooled = True
        self._pruned: tuple[str, ...] = ()

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
        return self.forward_head(x) if self._pooled else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of some entries of ``feature_info``, and the last features, in one pass.

        Args:
            x: (B, 3, H, W) normalised pictures.
            indices: which: a list (negative ones count from the end), a number for so many of the last, None for all.
            norm: put maps through the family's last norm, where they have the channels that it is for.
            stop_early: accepted as timm does; what follows the last index is computed all the same, unless
                :meth:`prune_intermediate_layers` cut it off.
            output_fmt: of the maps: ``NCHW``, ``NHWC`` or ``NLC``.
            intermediates_only: return the maps alone.

        Returns:
            The maps, each (B, num_chs, h, w) or as ``output_fmt`` says; with the last features before them, as
            :meth:`forward_features` returns them, unless ``intermediates_only``.

        Raises:
            ModelError: an index that there is not, or an unknown format.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ModelError(f"output_fmt is {output_fmt!r}; NCHW, NHWC or NLC is needed")
        taken = self._indices(indices)
        maps: list[Tensor] = []
        features = self.forward_features(x, maps)
        chosen = [self._normed(maps[i]) if norm else maps[i] for i in taken]
        if output_fmt == "NHWC":
            chosen = [y.permute(0, 2, 3, 1) for y in chosen]
        elif output_fmt == "NLC":
            chosen = [y.flatten(2).transpose(1, 2) for y in chosen]
        return chosen if intermediates_only else (features, chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut off what maps of some entries of ``feature_info`` do not need.

        Args:
            indices: as for :meth:`forward_intermediates`.
            prune_norm: remove the last norm too. It goes with the blocks whose output it was made for in any case.
            prune_head: remove pooling and classifier too.

        Returns:
            The indices, counted from the beginning.
        """
        taken = self._indices(indices)
        path, _, last = self.feature_info[max(taken)]["module"].rpartition(".")
        container = self.get_submodule(path)
        assert isinstance(container, nn.ModuleList)
        pruned = [f"{path}.{i}" for i in range(int(last) + 1, len(container))]
        del container[int(last) + 1 :]
        if pruned and isinstance(getattr(container[-1], "downsample", None), nn.Module):
            container[-1].downsample = nn.Identity()
            pruned.append(f"{path}.{last}.downsample")
        misfit = self.feature_info[max(taken)]["num_chs"] != self.feature_info[-1]["num_chs"]
        if self.norm_path and (prune_norm or misfit):
            self.set_submodule(self.norm_path, nn.Identity())
            pruned.append(self.norm_path)
        if prune_head and not self.out_indices:
            self.reset_classifier(0, "")
        self._pruned += tuple(pruned)
        return taken

    def absent_paths(self) -> tuple[str, ...]:
        """Names of the parts of a classifier of its family that this model was made, or cut down, without."""
        paths = list(self._pruned)
        if self.out_indices or self.num_classes == 0:
            paths.append(self.classifier_path)
        if self.out_indices and self.norm_path:
            paths.append(self.norm_path)
        return tuple(paths)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into groups from the first layer to the last, for layer-wise rates of learning.

        Args:
            coarse: one group a stage instead of one a block.
        """
        layers = re.escape(self.feature_info[0]["module"].rpartition(".")[0])
        blocks: Any = rf"^{layers}\.(\d+)"
        if not coarse and len({info["reduction"] for info in self.feature_info}) > 1:
            # A stage's downsampling follows its blocks, whatever its own number among them is.
            blocks = [(rf"^{layers}\.(\d+)\.downsample\.", (9999,)), (rf"^{layers}\.(\d+)\.(?:blocks\.)?(\d+)", None)]
        return {"stem": r"^(?:backbone\.)?(?:patch_embed|pos_embed|cls_token)", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier reads, in timm's other word for ``num_features``."""
        return self.num_features

    @property
    def global_pool(self) -> str:
        """``pooling``, or "" where :meth:`reset_classifier` removed it and :meth:`forward` ends with the last features."""
        return self.pooling if self._pooled else ""

    def get_classifier(self) -> nn.Module:
        """The last layer: a Linear, or an Identity where it was removed."""
        return self.get_submodule(self.classifier_path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, freshly initialised.

        Args:
            num_classes: its outputs; 0 removes it.
            global_pool: "" removes the pooling too (with ``num_classes=0`` only); the family's ``pooling`` puts it back.

        Raises:
            ModelError: a pooling that the family does not have, a classifier without one, or a dense backbone.
        """
        if self.out_indices:
            raise ModelError(f"{self.model_name} was made with out_indices and has no classifier")
        if global_pool not in (None, "", self.pooling):
            raise ModelError(f"{self.model_name} pools by {self.pooling!r}, not by {global_pool!r}")
        pooled = self._pooled if global_pool is None else bool(global_pool)
        if num_classes and not pooled:
            raise ModelError(f"{self.model_name}: a classifier needs pooling; give global_pool={self.pooling!r}")
        like = next(self.parameters())
        head = make_head(self.num_features, num_classes).to(device=like.device, dtype=like.dtype)
        self.set_submodule(self.classifier_path, head)
        self.num_classes, self._pooled = num_classes, pooled

    def load_pretrained(self, path: str, prefix: str = "") -> None:
        """What timm calls for a ``pretrained_cfg`` with ``custom_load``: :func:`edgemamba.train.load_checkpoint`."""
        from edgemamba.train.checkpoint import load_checkpoint  # which imports this module

        load_checkpoint(self, path)

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices of ``feature_info`` that :meth:`forward_intermediates` was asked for, counted from the beginning."""
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        if not indices or not all(-count <= i < count for i in indices):
            raise ModelError(f"{self.model_name} has {count} feature maps, not those of {tuple(indices)}")
        return [i % count for i in indices]

    def _normed(self, x: Tensor) -> Tensor:
        """An NCHW map through the last norm, if it has the channels that the norm is for."""
        if self.norm_path is None or x.shape[1] != self.feature_info[-1]["num_chs"]:
            return x
        norm = self.get_submodule(self.norm_path)
        if isinstance(norm, nn.BatchNorm2d):
            return norm(x)
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_head(features: int, num_classes: int) -> nn.Module:
    """A classifier initialised as all the families do it: truncated normal of deviation 0.02, zero bias."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(features, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
