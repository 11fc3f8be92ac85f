"""Vim: bidirectional Mamba blocks over image patches (Zhu et al., arXiv:2401.09417)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, RMSNorm, at_least_float32, drop_path_rates
from edgemamba.train.models.options import check_options, check_scan, pair
from edgemamba.train.models.position import AxialRotation, insert_rows, resize_grid, split_rows
from edgemamba.train.models.vim_mixer import BidirectionalMixer
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order, insert_tokens_both_ways, scan_order

DIRECTIONS = 2


@dataclass(frozen=True)
class VimConfig:
    """Options of :class:`Vim`; the defaults are Vim-Tiny's.

    Attributes:
        img_size: height and width of the input in pixels; one number for both.
        patch_size, stride: of the patch embedding's convolution; a stride below the patch size makes patches overlap.
        norm: of the blocks: root mean square, or layer norm.
        cls_token: where class tokens are inserted among the M patch tokens: none, one before the first, one at M // 2, or
            two, before the first and after the last.
        pool: without a class token, what the classifier reads: the last token, the mean of all, every token with the
            largest logit of each class taken (``max``), or every token, for logits of each (``all``).
        abs_pos: learned position embedding, added after the class tokens are inserted.
        rope, rope_residual: rotate the tokens (and the residual stream) by their position before every block; models of
            January 2024.
        scan: a registered order of two directions, or one that extends to two. Orders of any grid, as the published one, walk
            the sequence, class tokens included; orders of a map walk the patches, and come by a class token at the step of its
            own row. The causal convolutions before the scans look along the sequence all the same.
        halve: divide the sum of the two directions by two.
        layer_scale: initial value of a learned scale of each mixer's channels; None for none.
        dynamic_img_size: accept inputs of any size by resizing the position embedding to their grid (bicubic; class
            tokens' rows are carried over).
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    stride: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    cls_token: Literal["none", "first", "middle", "double"] = "middle"
    pool: Literal["last", "mean", "max", "all"] = "mean"
    abs_pos: bool = True
    rope: bool = False
    rope_residual: bool = False
    halve: bool = True
    layer_scale: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    scan: str = "bidirectional"
    dynamic_img_size: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        check_options(self)
        if min(self.img_size) < self.patch_size:
            raise ModelError(f"img_size {self.img_size} is smaller than a patch of {self.patch_size} pixels")
        if self.rope and (self.cls_token == "double" or self.dynamic_img_size or self.grid[0] != self.grid[1]):
            raise ModelError(
                "rope: its tables are of one square grid with at most one class token, and not for dynamic_img_size"
            )
        check_scan(self.scan, (DIRECTIONS,))
        multiple = get_order(self.scan).multiple
        if multiple > 1 and (self.dynamic_img_size or any(side % multiple for side in self.grid)):
            raise ModelError(
                f"scan {self.scan!r} takes grids of multiples of {multiple}, and not dynamic_img_size; "
                f"the grid of patches is {self.grid}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an input of ``img_size``."""
        return self.grid_of(*self.img_size)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an input of that many pixels."""
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def cls_rows(self, patches: int) -> list[int]:
        """Indices of the class tokens in the sequence of ``patches`` patch tokens and themselves."""
        return {"none": [], "first": [0], "middle": [patches // 2], "double": [0, patches + 1]}[self.cls_token]


class VimBlock(nn.Module):
    """Add the branch to the residual stream, normalise, mix. The mixer's result is added by the next block, or at the end.

    The stream is kept in float32 (``residual_in_fp32`` in upstream's flags).
    """

    def __init__(self, config: VimConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.mixer = BidirectionalMixer(
            config.embed_dim,
            config.d_state,
            config.d_conv,
            config.expand,
            halve=config.halve,
            layer_scale=config.layer_scale,
        )
        self.drop_path = DropPath(drop_path)
        with torch.no_grad():  # so that the stream's variance does not grow with the depth
            self.mixer.out_proj.weight.div_(math.sqrt(config.depth))

    def forward(self, hidden: Tensor, residual: Tensor | None, order: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, C) mixer output of the block before, and the stream before it (None: nothing yet) -> both after."""
        residual = add_to_stream(residual, hidden, self.drop_path)
        return self.mixer(self.norm(residual), order), residual


class PatchEmbed(nn.Module):
    """Patches to tokens: one convolution, row-major."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.stride)
        # timm's lecun_normal_: the deviation is corrected for the truncation at two deviations.
        fan_in = math.prod(self.proj.weight.shape[1:])
        nn.init.trunc_normal_(self.proj.weight, std=fan_in**-0.5 / 0.87962566103423978)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, C)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Vim(Backbone):
    """Vision Mamba. Keys of the state are those of the official code (hustvl/Vim)."""

    norm_path = "norm_f"
    output_fmt = "NLC"

    config: VimConfig

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.config = config
        self.pooling = "token" if config.cls_token != "none" else {"mean": "avg"}.get(config.pool, config.pool)
        self.model_name = "vim"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.embed_dim
        dim, patches = config.embed_dim, math.prod(config.grid)

        self.patch_embed = PatchEmbed(config)
        for name in self._cls_names():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02)))
        tokens = patches + len(self._cls_names())
        positions = nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02)
        self.pos_embed = nn.Parameter(positions) if config.abs_pos else None
        self.rope = AxialRotation(dim, config.grid[0]) if config.rope else None
        self.pos_drop = nn.Dropout(config.drop_rate)

        # The rate grows linearly over the mixers; a block drops the branch that it adds, which is the mixer's before it.
        rates = [0.0, *drop_path_rates(config.drop_path_rate, config.depth)]
        self.layers = nn.ModuleList(VimBlock(config, rate) for rate in rates[: config.depth])
        self.drop_path = DropPath(config.drop_path_rate)
        self.norm_f = make_norm(config)
        self.head = make_head(dim, config.num_classes)
        self.feature_info = [
            {"num_chs": dim, "reduction": config.stride, "module": f"layers.{i}"} for i in range(config.depth)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, L, C) normalised tokens, class tokens included.

        ``maps`` are of the residual stream after each block, patches only.
        """
        grid = self.config.grid_of(x.shape[-2], x.shape[-1])
        hidden = self.embed(x)
        order = self._order(hidden, grid)
        residual: Tensor | None = None
        for block in self.layers:
            if self.rope is not None:
                hidden = self.rope(hidden)
                if residual is not None and self.config.rope_residual:
                    residual = self.rope(residual)
            if self.grad_checkpointing and self.training:
                hidden, residual = checkpoint(block, hidden, residual, order, use_reentrant=False)
            else:
                hidden, residual = block(hidden, residual, order)
            if maps is not None:
                maps.append(self._map(add_to_stream(residual, hidden, self.drop_path), grid))
        return self.norm_f(add_to_stream(residual, hidden, self.drop_path))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, L, C) tokens -> logits (B, num_classes), or the classifier's input (B, C)."""
        rows = self.config.cls_rows(x.shape[1] - len(self._cls_names()))
        pool = self.config.pool
        if len(rows) == 1:
            x = x[:, rows[0]]
        elif len(rows) == 2:
            x = (x[:, rows[0]] + x[:, rows[1]]) / 2
        elif pool in ("last", "mean"):
            x = x[:, -1] if pool == "last" else x.mean(1)
        if pre_logits:
            return x
        x = self.head(x)
        return x.amax(1) if pool == "max" and not rows else x

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, C) tokens with class tokens and positions.

        Raises:
            ModelError: the input is not of the model's size, and the model is not made for other sizes.
        """
        config = self.config
        size = (x.shape[-2], x.shape[-1])
        if not config.dynamic_img_size and size != config.img_size:
            raise ModelError(
                f"the input is {size[0]}x{size[1]}, the model {config.img_size[0]}x{config.img_size[1]}: "
                f"make it with img_size={tuple(size)}, or with dynamic_img_size=True"
            )
        tokens = self._insert_cls(self.patch_embed(x))
        if self.pos_embed is not None:
            tokens = tokens + self._positions(config.grid_of(*size))
        return self.pos_drop(tokens)

    def _order(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The order (2, L) of (B, L, C) tokens, class tokens included."""
        scan = self.config.scan
        if get_order(scan).axes is None:
            return scan_order(scan, (tokens.shape[1],), tokens.device, directions=DIRECTIONS)
        order = scan_order(scan, grid, tokens.device, directions=DIRECTIONS)
        return insert_tokens_both_ways(order, self.config.cls_rows(grid[0] * grid[1]))

    def _insert_cls(self, patches: Tensor) -> Tensor:
        """(B, M, C) -> (B, L, C)."""
        names = self._cls_names()
        if not names:
            return patches
        batch, count, _ = patches.shape
        tokens = [self.get_parameter(name).expand(batch, -1, -1) for name in names]
        if len(tokens) == 2:
            return torch.cat([tokens[0], patches, tokens[1]], dim=1)
        (row,) = self.config.cls_rows(count)
        return torch.cat([patches[:, :row], tokens[0], patches[:, row:]], dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, L, C) position embedding of a grid."""
        assert self.pos_embed is not None
        if not self.config.dynamic_img_size:
            return self.pos_embed
        own = self.config.grid
        rows = self.config.cls_rows(math.prod(own))
        cls, patches = split_rows(self.pos_embed, rows)
        return insert_rows(resize_grid(patches, own, grid), cls, self.config.cls_rows(math.prod(grid)))

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, C, rows, columns) without class tokens."""
        for row in reversed(self.config.cls_rows(tokens.shape[1] - len(self._cls_names()))):
            tokens = torch.cat([tokens[:, :row], tokens[:, row + 1 :]], dim=1)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _cls_names(self) -> tuple[str, ...]:
        """Names of the class tokens' parameters, in the order of the sequence."""
        return {"none": (), "double": ("cls_token_head", "cls_token_tail")}.get(self.config.cls_token, ("cls_token",))


def make_norm(config: VimConfig) -> nn.Module:
    """The norm that the configuration names."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.embed_dim, eps=config.norm_eps)


def add_to_stream(residual: Tensor | None, hidden: Tensor, drop_path: nn.Module) -> Tensor:
    """The residual stream, in float32 at least, with a branch added to it."""
    hidden = at_least_float32(drop_path(hidden))
    return hidden if residual is None else residual + hidden


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "stride": "stride",
    "channels": "in_chans",
    "num_classes": "num_classes",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "d_state": "d_state",
    "norm_epsilon": "norm_eps",
    "if_abs_pos_embed": "abs_pos",
    "if_rope": "rope",
    "if_rope_residual": "rope_residual",
    "if_divide_out": "halve",
    "init_layer_scale": "layer_scale",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
}
# Flags of which this package has one value only.
_UPSTREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "bimamba_type": ("v2",),
    "if_bidirectional": (False,),
    "flip_img_sequences_ratio": (-1, -1.0),
    "pt_hw_seq_len": (14,),
    "ssm_cfg": (None, {}),
}
# Read below, or without effect on the result: kernels' choices, and a misspelt keyword that upstream swallows.
_UPSTREAM_READ = ("rms_norm", "final_pool_type", "if_cls_token", "use_middle_cls_token", "use_double_cls_token")
_UPSTREAM_INERT = (
    "cls",
    "device",
    "dtype",
    "ft_seq_len",
    "fused_add_norm",
    "if_bimamba",
    "if_devide_out",
    "initializer_cfg",
    "pretrained",
    "residual_in_fp32",
)


def config_from_upstream(config: Mapping[str, Any]) -> VimConfig:
    """The keywords of the official ``VisionMamba`` (commit dd0358a), with its defaults, as ours."""
    for flag, values in _UPSTREAM_FIXED.items():
        if flag in config and config[flag] not in values:
            raise ModelError(f"vim: upstream's {flag}={config[flag]!r} is not supported")
    read = (*_UPSTREAM_FIXED, *_UPSTREAM_READ, *_UPSTREAM_INERT)
    options = pick("vim", config, _UPSTREAM_NAMES, read)
    options["norm"] = "rms" if config.get("rms_norm", True) else "layer"
    options["pool"] = {"none": "last"}.get(pool := config.get("final_pool_type", "none"), pool)
    if not config.get("if_cls_token", True):
        options["cls_token"] = "none"
    elif config.get("use_double_cls_token", False):
        options["cls_token"] = "double"
    else:
        options["cls_token"] = "middle" if config.get("use_middle_cls_token", True) else "first"
    return VimConfig(**options)


def _recognise(keys: Collection[str]) -> bool:
    return "layers.0.mixer.A_b_log" in keys


register_family(
    Family(
        name="vim",
        title="Vision Mamba",
        paper="Zhu et al., arXiv:2401.09417",
        config=VimConfig,
        build=Vim,
        from_upstream=config_from_upstream,
        recognise=_recognise,
    )
)

_README = "hustvl/Vim README"


def _register(size: str, embed_dim: int, stride: int, params: int, top1: float | None, suffix: str) -> None:
    fine = "" if stride == 16 else f"_stride{stride}"
    upstream = f"vim_{size}_patch16{fine}_224_bimambav2_final_pool_mean_abs_pos_embed_{suffix}_div2"
    register_model(
        ModelEntry(
            name=f"vim_{size}{fine}",
            family="vim",
            config=VimConfig(embed_dim=embed_dim, stride=stride),
            preprocessing=Preprocessing(size=(224, 224)),
            params=params,
            aliases=(upstream,),
            top1=top1,
            source=_README + (f", fine-tuned at stride {stride}" if fine else ""),
        )
    )


_register("tiny", 192, 16, 7_148_008, 76.1, "with_midclstok")
_register("tiny", 192, 8, 7_250_344, 78.3, "with_midclstok")
_register("small", 384, 16, 25_796_584, 80.5, "with_midclstok")
_register("small", 384, 8, 26_001_256, 81.6, "with_midclstok")
_register("base", 768, 16, 97_598_440, 81.9, "with_middle_cls_token")
