"""MambaVision: convolutions first, then scans and attention within windows (Hatamizadeh & Kautz, arXiv:2407.08083).

The code here is our own, written from a description. NVIDIA's code and weights are for non-commercial use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import LayerNorm2d, drop_path_rates, initialise_linear
from edgemamba.train.models.mambavision_blocks import (
    EPS,
    Attention,
    Block,
    ConvBlock,
    Halve,
    MambaVisionMixer,
    Stem,
)
from edgemamba.train.models.options import check_options, pair
from edgemamba.train.models.windows import from_windows, to_windows
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order, scan_order

# The first stages convolve; the others scan and attend.
CONV_STAGES = 2
STAGES = 4


@dataclass(frozen=True)
class MambaVisionConfig:
    """Options of :class:`MambaVision`; the defaults are MambaVision-T's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size.
        dim, in_dim: channels of the first stage (each has twice those of the one before), and between the stem's convolutions.
        depths: blocks of each stage; of the last two stages' the first half, rounded up, scan, the others attend.
        num_heads: of the attention, for each stage.
        window_size: side of the windows that a stage's tokens are divided into; the first two stages have none. It is not
            stored in weights and may be changed: at the published sizes, of which they are a 16th and a 32nd, one window
            covers the whole map; maps that they do not divide are padded.
        qk_norm: norm queries and keys.
        layer_scale, layer_scale_conv: initial value of a learned scale of each branch's channels; None for no such parameter.
        d_state: states for each channel that is scanned.
        scan: a registered order of one direction over the positions of a window.
        out_indices: stages whose maps a dense backbone (``MM_mamba_vision`` in the official code) returns, each through its
            own norm, instead of logits; empty for a classifier.
        out_norm: of a dense backbone.
    """

    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    dim: int = 80
    in_dim: int = 32
    depths: tuple[int, ...] = (1, 3, 8, 4)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    window_size: tuple[int, ...] = (8, 8, 14, 7)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    layer_scale_conv: float | None = None
    d_state: int = 8
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.2
    scan: str = "raster"
    out_indices: tuple[int, ...] = ()
    out_norm: Literal["layer", "batch"] = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        for name in ("depths", "num_heads", "window_size", "out_indices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_options(self)
        for name in ("depths", "num_heads", "window_size"):
            values = getattr(self, name)
            if len(values) != STAGES or min(values) < 1:
                raise ModelError(f"{name} is {values}; {STAGES} positive numbers are needed, one a stage")
        for i in range(CONV_STAGES, STAGES):
            if self.dims[i] % 2 or self.dims[i] % self.num_heads[i]:
                raise ModelError(
                    f"dim {self.dim}: the {self.dims[i]} channels of stage {i} do not divide by {self.num_heads[i]} heads"
                )
        if self.mlp_ratio <= 0:
            raise ModelError(f"mlp_ratio is {self.mlp_ratio}; a positive number is needed")
        order = get_order(self.scan)
        if order.directions != 1 or order.axes not in (None, 2):
            raise ModelError(f"scan {self.scan!r} is not one walk over a window: MambaVision scans in one direction")
        if any(window % order.multiple for window in self.window_size[CONV_STAGES:]):
            raise ModelError(
                f"scan {self.scan!r} takes windows of multiples of {order.multiple}; window_size is {self.window_size}"
            )
        if len(set(self.out_indices)) < len(self.out_indices) or not set(self.out_indices) <= set(range(STAGES)):
            raise ModelError(f"out_indices {self.out_indices} are not different stages of 0 to {STAGES - 1}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim * 2**i for i in range(STAGES))


class ConvStage(nn.Module):
    """Convolutions, then half the resolution."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, grad_checkpointing: bool = False, maps: list[Tensor] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H / 2, W / 2), rounded up; the blocks' result is appended to ``maps``."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if grad_checkpointing else block(x)
        if maps is not None:
            maps.append(x)
        return self.downsample(x)


class WindowStage(nn.Module):
    """Scans and attention within windows, then half the resolution.

    The map is divided once for all blocks. What fills the last windows is not masked: it becomes tokens like the others.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module, window: int, scan: str) -> None:
        super().__init__()
        self.window, self.scan = window, scan
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, grad_checkpointing: bool = False, maps: list[Tensor] | None = None) -> Tensor:
        """(B, C, H, W) -> as :meth:`ConvStage.forward`; the same shape in the last stage."""
        height, width = x.shape[2], x.shape[3]
        order = scan_order(self.scan, (self.window, self.window), x.device)
        x = to_windows(x.permute(0, 2, 3, 1), self.window)
        for block in self.blocks:
            x = checkpoint(block, x, order, use_reentrant=False) if grad_checkpointing else block(x, order)
        x = from_windows(x, self.window, height, width).permute(0, 3, 1, 2)
        if maps is not None:
            maps.append(x)
        return self.downsample(x)


class MambaVision(Backbone):
    """MambaVision. Keys of the state are those of the official code (NVlabs/MambaVision)."""

    norm_path = "norm"
    first_conv = "patch_embed.conv_down.0"
    output_fmt = "NCHW"

    config: MambaVisionConfig

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "mambavision"
        self.preprocessing = Preprocessing(size=config.img_size, crop_pct=1.0)
        self.num_classes, self.num_features = config.num_classes, config.dims[-1]
        self.out_indices = config.out_indices

        self.patch_embed = Stem(config.in_chans, config.in_dim, config.dim)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.levels = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            downsample = Halve(dim) if i < STAGES - 1 else nn.Identity()
            if i < CONV_STAGES:
                convs = [ConvBlock(dim, config.layer_scale_conv, next(rates)) for _ in range(depth)]
                self.levels.append(ConvStage(convs, downsample))
            else:
                blocks = [make_block(config, i, j, next(rates)) for j in range(depth)]
                self.levels.append(WindowStage(blocks, downsample, config.window_size[i], config.scan))
        if not self.out_indices:
            self.norm = nn.BatchNorm2d(self.num_features, eps=EPS)
        for i in self.out_indices:
            kind = LayerNorm2d if config.out_norm == "layer" else nn.BatchNorm2d
            self.add_module(f"outnorm{i}", kind(config.dims[i], eps=EPS))
        # Upstream's, which takes dt_proj's usual start with it.
        self.apply(initialise_linear)
        if not self.out_indices:
            self.head = make_head(self.num_features, config.num_classes)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"levels.{i}"} for i, dim in enumerate(config.dims)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, C, h, w) map of the last stage; normed in a classifier."""
        x = self.patch_embed(x)
        for level in self.levels:
            x = level(x, self.grad_checkpointing and self.training, maps)
        return x if self.out_indices else self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> logits (B, num_classes), or the classifier's input (B, C)."""
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


def make_block(config: MambaVisionConfig, stage: int, index: int, drop_path: float) -> Block:
    """Block ``index`` of one of the last two stages: the first half of them, rounded up, scan."""
    dim = config.dims[stage]
    mixer: nn.Module
    if index < (config.depths[stage] + 1) // 2:
        mixer = MambaVisionMixer(dim, config.d_state)
    else:
        heads = config.num_heads[stage]
        mixer = Attention(dim, heads, config.qkv_bias, config.qk_norm, config.attn_drop_rate, config.drop_rate)
    return Block(dim, mixer, config.mlp_ratio, config.layer_scale, config.drop_rate, drop_path)


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "dim": "dim",
    "in_dim": "in_dim",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "qk_scale": "qk_norm",  # a misnomer: it is a truth value, and no scale changes
    "layer_scale": "layer_scale",
    "layer_scale_conv": "layer_scale_conv",
    "drop_rate": "drop_rate",
    "attn_drop_rate": "attn_drop_rate",
    "drop_path_rate": "drop_path_rate",
    "out_indices": "out_indices",
    "norm_layer": "out_norm",
}
# Taken and not used: any size is accepted; timm's description of the model; weights are loaded elsewhere.
_UPSTREAM_INERT = (
    "cls",
    "resolution",
    "img_size",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "features_only",
)
_OUT_NORMS = {"ln2d": "layer", "bn": "batch"}
_CLASSIFIER, _DENSE = "MambaVision", "MM_mamba_vision"


def config_from_upstream(config: Mapping[str, Any]) -> MambaVisionConfig:
    """The keywords of the official ``MambaVision`` or ``MM_mamba_vision`` (commit 7860a50), with its defaults, as ours."""
    options = pick("mambavision", config, _UPSTREAM_NAMES, _UPSTREAM_INERT)
    for name in ("layer_scale", "layer_scale_conv"):
        if isinstance(options.get(name), bool) or not isinstance(options.get(name), int | float):
            options[name] = None  # upstream makes the parameter for numbers only
    options["qk_norm"] = bool(options.get("qk_norm", False))
    kind = str(config.get("cls") or _CLASSIFIER)
    if _CLASSIFIER not in kind and _DENSE not in kind:
        raise ModelError(f"mambavision: upstream's cls={kind!r} is not supported")
    dense = _DENSE in kind or bool({"out_indices", "norm_layer"} & config.keys())
    if dense:
        if config.get("norm_layer", "ln2d") not in _OUT_NORMS:
            raise ModelError(f"mambavision: upstream's norm_layer={config['norm_layer']!r} is not supported")
        options["out_norm"] = _OUT_NORMS[config.get("norm_layer", "ln2d")]
        options.setdefault("out_indices", (0, 1, 2, 3))
        options["drop_path_rate"] = 0.2  # whatever it is told
    return MambaVisionConfig(**options)


def rename_checkpoint_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Branch scales under the names that copies of the weights on model hubs may have (``g_1``; ``weight_1``, which old versions
    of transformers make of ``gamma_1``) under upstream's."""
    return {
        re.sub(r"(\.blocks\.\d+)\.(?:g|weight)_([12])$", r"\1.gamma_\2", key): value for key, value in state.items()
    }


def _recognise(keys: Collection[str]) -> bool:
    return any(".mixer.conv1d_x." in key for key in keys)


register_family(
    Family(
        name="mambavision",
        title="MambaVision",
        paper="Hatamizadeh & Kautz, arXiv:2407.08083",
        config=MambaVisionConfig,
        build=MambaVision,
        from_upstream=config_from_upstream,
        recognise=_recognise,
        adapt=rename_checkpoint_keys,
    )
)

# Size -> dim, in_dim, depths, heads, drop path, layer scale, parameters.
_SIZES: dict[str, tuple[int, int, tuple[int, ...], tuple[int, ...], float, float | None, int]] = {
    "T": (80, 32, (1, 3, 8, 4), (2, 4, 8, 16), 0.2, None, 31_794_248),
    "T2": (80, 32, (1, 3, 11, 4), (2, 4, 8, 16), 0.2, None, 35_104_008),
    "S": (96, 64, (3, 3, 7, 5), (2, 4, 8, 16), 0.2, None, 50_140_584),
    "B": (128, 64, (3, 3, 10, 5), (2, 4, 8, 16), 0.3, 1e-5, 97_685_288),
    "L": (196, 64, (3, 3, 10, 5), (4, 8, 16, 32), 0.3, 1e-5, 227_961_048),
    "L2": (196, 64, (3, 3, 12, 5), (4, 8, 16, 32), 0.3, 1e-5, 241_554_824),
    "L3": (256, 64, (3, 3, 20, 10), (4, 8, 16, 32), 0.5, 1e-5, 739_570_472),
}


def _register(
    size: str, suffix: str, img_size: int, top1: float, crop_pct: float, resize: Literal["center_crop", "squash_crop"]
) -> None:
    dim, in_dim, depths, heads, drop_path, layer_scale, params = _SIZES[size]
    pretrained = ", pre-trained on ImageNet-21k" if suffix.endswith("21k") else ""
    register_model(
        ModelEntry(
            name=f"mambavision_{size.lower()}{suffix}",
            family="mambavision",
            config=MambaVisionConfig(
                img_size=(img_size, img_size),
                dim=dim,
                in_dim=in_dim,
                depths=depths,
                num_heads=heads,
                window_size=(8, 8, img_size // 16, img_size // 32),
                layer_scale=layer_scale,
                drop_path_rate=drop_path,
            ),
            preprocessing=Preprocessing(size=(img_size, img_size), resize=resize, crop_pct=crop_pct),
            params=params,
            aliases=(f"mamba_vision_{size}{suffix}",),
            top1=top1,
            source=f"NVlabs/MambaVision README{pretrained}",
        )
    )


_register("T", "", 224, 82.3, 1.0, "center_crop")
_register("T2", "", 224, 82.7, 0.98, "center_crop")
_register("S", "", 224, 83.3, 0.93, "center_crop")
_register("B", "", 224, 84.2, 1.0, "center_crop")
_register("L", "", 224, 85.0, 1.0, "center_crop")
_register("L2", "", 224, 85.3, 1.0, "center_crop")
_register("B", "_21k", 224, 84.9, 1.0, "center_crop")
_register("L", "_21k", 224, 86.1, 1.0, "center_crop")
_register("L2", "_512_21k", 512, 87.3, 0.93, "squash_crop")
_register("L3", "_256_21k", 256, 87.3, 1.0, "center_crop")
_register("L3", "_512_21k", 512, 88.1, 0.93, "squash_crop")
