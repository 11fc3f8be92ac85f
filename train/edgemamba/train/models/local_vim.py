"""LocalVim: Vim with four directions a layer, by windows too (LocalMamba, Huang et al., arXiv:2403.09338)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, RMSNorm, drop_path_rates, initialise_linear
from edgemamba.train.models.local_directions import (
    ALL_DIRECTIONS,
    LOCAL_VIM_TINY,
    LayerDirections,
    checked_directions,
)
from edgemamba.train.models.local_scan import LOCAL, Walk, check_layer_scan, layer_walks
from edgemamba.train.models.local_vim_mixer import LocalMixer
from edgemamba.train.models.options import check_options, pair
from edgemamba.train.models.position import AxialRotation, fit_grid, insert_rows, split_rows
from edgemamba.train.models.vim import add_to_stream
from edgemamba.train.registry import pick


@dataclass(frozen=True)
class LocalVimConfig:
    """Options of :class:`LocalVim`; the defaults are LocalVim-T's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size:
            pictures are padded to whole patches with zeros, and position embedding and rotation are resized (bicubic).
        patch_size: size and stride of the patch embedding's convolution.
        directions: those of each layer, such as ``("h", "v_flip", "w7", "w7_flip")``; None for the supernet, in which every
            layer has all eight and weighs them.
        scan: ``local`` for those directions, or a registered scan order in the place of every layer's.
        norm: of the blocks: root mean square, or layer norm.
        cls_token: a class token at M // 2 among the M patch tokens, or none.
        pool: without a class token, what the classifier reads: the last token, the mean of all, or every token, for logits of
            each (``all``).
        abs_pos: learned position embedding.
        rope, rope_residual: rotate the tokens (and the residual stream) by their position before every block; not with a class
            token.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 20
    directions: LayerDirections | None = LOCAL_VIM_TINY
    scan: str = LOCAL
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    cls_token: Literal["none", "middle"] = "none"
    pool: Literal["last", "mean", "all"] = "mean"
    abs_pos: bool = True
    rope: bool = True
    rope_residual: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        check_options(self)
        object.__setattr__(self, "directions", checked_directions(self.directions, self.depth))
        check_layer_scan(self.scan, self.layers)
        if min(self.img_size) < self.patch_size:
            raise ModelError(f"img_size {self.img_size} is smaller than a patch of {self.patch_size} pixels")
        if self.rope and self.cls_token != "none":
            raise ModelError("rope: its tables have no row for a class token; give rope=False or cls_token='none'")
        if self.rope and self.embed_dim % 4:
            raise ModelError(f"rope: embed_dim is {self.embed_dim}; a multiple of 4 is needed")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position embedding: whole patches in ``img_size``."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def layers(self) -> Sequence[Sequence[str]]:
        """The directions of each layer."""
        return [ALL_DIRECTIONS] * self.depth if self.directions is None else self.directions

    def cls_rows(self, patches: int) -> list[int]:
        """Indices of the class tokens in the sequence of ``patches`` patch tokens and themselves."""
        return [] if self.cls_token == "none" else [patches // 2]


class LocalVimBlock(nn.Module):
    """Add the branch to the residual stream, normalise, mix, as a :class:`~edgemamba.train.models.vim.VimBlock` does."""

    def __init__(self, config: LocalVimConfig, directions: int, drop_path: float) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.mixer = LocalMixer(
            config.embed_dim, directions, config.directions is None, config.d_state, config.d_conv, config.expand
        )
        self.drop_path = DropPath(drop_path)
        # Upstream's, which leaves no bias to the step sizes, other than in Mamba.
        self.apply(initialise_linear)
        out_proj = self.mixer.out_proj.weight
        with torch.no_grad():  # so that the stream's variance does not grow with the depth
            nn.init.kaiming_uniform_(out_proj, a=math.sqrt(5)).div_(math.sqrt(config.depth))

    def forward(self, hidden: Tensor, residual: Tensor | None, walks: Sequence[Walk]) -> tuple[Tensor, Tensor]:
        """(B, L, C) mixer output of the block before, and the stream before it (None: nothing yet) -> both after."""
        residual = add_to_stream(residual, hidden, self.drop_path)
        return self.mixer(self.norm(residual), walks), residual


class PatchEmbed(nn.Module):
    """Patches to a map: one convolution, of pictures padded to whole patches."""

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.patch_size)
        self.patch_size = config.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / patch), ceil(W / patch))."""
        if not all(isinstance(side, int) and side % self.patch_size == 0 for side in x.shape[-2:]):
            # Up to a patch: the convolution leaves out what makes no whole one. How much is missing is not asked, because
            # the answer for the example of a trace with symbolic sizes would become a condition on every other.
            x = F.pad(x, (0, self.patch_size - 1, 0, self.patch_size - 1))
        return self.proj(x)


class LocalVim(Backbone):
    """LocalVim (``VisionMamba`` in the official code, hunto/LocalMamba, whose state keys these are)."""

    norm_path = "norm_f"
    output_fmt = "NLC"

    config: LocalVimConfig

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__()
        self.config = config
        self.pooling = "token" if config.cls_token != "none" else {"mean": "avg"}.get(config.pool, config.pool)
        self.model_name = "local_vim"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.embed_dim
        dim, tokens = config.embed_dim, math.prod(config.grid)

        self.patch_embed = PatchEmbed(config)
        self.cls_token = None
        if config.cls_token != "none":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            tokens += 1
        positions = nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02)
        self.pos_embed = nn.Parameter(positions) if config.abs_pos else None
        self.rope = AxialRotation(dim, config.grid) if config.rope else None
        self.pos_drop = nn.Dropout(config.drop_rate)

        # The rate grows linearly over the mixers; a block drops the branch that it adds, which is the mixer's before it.
        rates = [0.0, *drop_path_rates(config.drop_path_rate, config.depth)]
        self.layers = nn.ModuleList(
            LocalVimBlock(config, len(names), rate) for names, rate in zip(config.layers, rates, strict=False)
        )
        self.drop_path = DropPath(config.drop_path_rate)
        self.norm_f = _norm(config)
        self.head = make_head(dim, config.num_classes)
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size, "module": f"layers.{i}"} for i in range(config.depth)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, L, C) normalised tokens, a class token included.

        ``maps`` are of the residual stream after each block, patches only.
        """
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        hidden = self._tokens(x, grid)
        tables = None if self.rope is None else self.rope.tables(grid)
        walks = layer_walks(self.config.layers, self.config.scan, grid, x.device)
        for row in self.config.cls_rows(grid[0] * grid[1]):
            walks = [[walk.with_cls(row) for walk in layer] for layer in walks]
        residual: Tensor | None = None
        for block, layer in zip(self.layers, walks, strict=False):  # blocks may have been cut off
            if self.rope is not None:
                hidden = self.rope(hidden, tables)
                if residual is not None and self.config.rope_residual:
                    residual = self.rope(residual, tables)
            if self.grad_checkpointing and self.training:
                hidden, residual = checkpoint(block, hidden, residual, layer, use_reentrant=False)
            else:
                hidden, residual = block(hidden, residual, layer)
            if maps is not None:
                maps.append(self._map(add_to_stream(residual, hidden, self.drop_path), grid))
        return self.norm_f(add_to_stream(residual, hidden, self.drop_path))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, L, C) tokens -> logits (B, num_classes), or the classifier's input (B, C)."""
        if self.cls_token is not None:
            x = x[:, (x.shape[1] - 1) // 2]
        elif self.config.pool != "all":
            x = x[:, -1] if self.config.pool == "last" else x.mean(1)
        return x if pre_logits else self.head(x)

    def _tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, C, rows, columns) -> (B, L, C) with class token and positions.

        With a class token upstream takes no other size than its own. Here its row of the embedding is kept, and the others
        are resized as they are without one.
        """
        tokens = x.flatten(2).transpose(1, 2)
        rows = self.config.cls_rows(grid[0] * grid[1])
        if self.cls_token is not None:
            (row,) = rows
            tokens = torch.cat([tokens[:, :row], self.cls_token.expand(x.shape[0], -1, -1), tokens[:, row:]], dim=1)
        if self.pos_embed is not None:
            cls, patches = split_rows(self.pos_embed, self.config.cls_rows(math.prod(self.config.grid)))
            tokens = tokens + insert_rows(fit_grid(patches, self.config.grid, grid), cls, rows)
        return self.pos_drop(tokens)

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, C, rows, columns) without class token."""
        for row in self.config.cls_rows(grid[0] * grid[1]):
            tokens = torch.cat([tokens[:, :row], tokens[:, row + 1 :]], dim=1)
        return tokens.transpose(1, 2).unflatten(2, grid)


def _norm(config: LocalVimConfig) -> nn.Module:
    """The norm that the configuration names."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.embed_dim, eps=config.norm_eps)


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_chans",
    "num_classes": "num_classes",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "norm_epsilon": "norm_eps",
    "if_abs_pos_embed": "abs_pos",
    "if_rope": "rope",
    "if_rope_residual": "rope_residual",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
}
# What those that are left out stand for upstream, where that is not our default.
_UPSTREAM_DEFAULTS = {"depth": 24, "if_abs_pos_embed": False, "if_rope": False, "if_rope_residual": False}
# Flags of which this package has one value only.
_UPSTREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "pt_hw_seq_len": (14,),
    "ssm_cfg": (None, {}),
    "use_double_cls_token": (False,),
}
_UPSTREAM_READ = ("directions", "rms_norm", "final_pool_type", "if_cls_token", "use_middle_cls_token")
# Without effect on the result: kernels' choices, and what upstream takes and never reads.
_UPSTREAM_INERT = (
    "bimamba_type",
    "cls",
    "device",
    "dtype",
    "ft_seq_len",
    "fused_add_norm",
    "initializer_cfg",
    "pretrained",
    "residual_in_fp32",
)


def config_from_upstream(config: Mapping[str, Any]) -> LocalVimConfig:
    """The keywords of the official ``local_vim.VisionMamba`` (commit 75e5d1f), with its defaults, as ours."""
    for flag, values in _UPSTREAM_FIXED.items():
        if flag in config and config[flag] not in values:
            raise ModelError(f"local_vim: upstream's {flag}={config[flag]!r} is not supported")
    read = (*_UPSTREAM_FIXED, *_UPSTREAM_READ, *_UPSTREAM_INERT)
    options = pick("local_vim", {**_UPSTREAM_DEFAULTS, **config}, _UPSTREAM_NAMES, read)
    directions = config.get("directions")
    searched = directions is None or all(names is None for names in directions)
    options["directions"] = None if searched else directions
    options["norm"] = "rms" if config.get("rms_norm", False) else "layer"
    options["pool"] = {"none": "last"}.get(pool := config.get("final_pool_type", "none"), pool)
    if config.get("if_cls_token", False):
        if not config.get("use_middle_cls_token", False):
            raise ModelError("local_vim: upstream's if_cls_token is supported with use_middle_cls_token only")
        options["cls_token"] = "middle"
    return LocalVimConfig(**options)
