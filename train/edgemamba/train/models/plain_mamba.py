"""PlainMamba: layers of one width on a map of one size, scanned along walks that never jump (Yang et al., arXiv:2403.17695)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, drop_path_rates, initialise_linear
from edgemamba.train.models.options import check_options, check_scan, pair
from edgemamba.train.models.plain_mamba_mixer import DIRECTIONS, PlainMambaMixer, Walks, walks
from edgemamba.train.models.position import resize_grid
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order

# Channels of the stem, and pixels that a position of its result stands for, in every variant.
STEM_WIDTH, STEM_STRIDE = 64, 2


@dataclass(frozen=True)
class PlainMambaConfig:
    """Options of :class:`PlainMamba`; the defaults are PlainMamba-L1's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size:
            the position embedding, which is of this one, is resized to the grid of others (bicubic).
        patch_size: pixels that a token stands for, each way; even. What a side lacks to a multiple is padded with zeros.
        num_convs: 3 x 3 convolutions of the stem.
        dwconv_layers: numbers of the layers that end in a depthwise convolution.
        d_conv: side of the mixers' convolution; odd.
        dt_rank: channels of the step size's projection; None for ``embed_dim / 16``, rounded up.
        conv_bias, bias: whether the mixers' convolution, and their outer projections, have one.
        scan: a registered order of four directions, or one that extends to four.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 24
    num_convs: int = 1
    dwconv_layers: tuple[int, ...] = (0,)
    d_state: int = 16
    d_conv: int = 7
    expand: int = 2
    dt_rank: int | None = None
    conv_bias: bool = True
    bias: bool = True
    drop_path_rate: float = 0.2
    scan: str = "snake"

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        object.__setattr__(self, "dwconv_layers", tuple(self.dwconv_layers))
        check_options(self)
        check_scan(self.scan, (DIRECTIONS,))
        if self.patch_size % STEM_STRIDE:
            raise ModelError(f"patch_size is {self.patch_size}; an even number is needed")
        if self.d_conv % 2 == 0:
            raise ModelError(f"d_conv is {self.d_conv}; an odd number is needed")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ModelError(f"dt_rank is {self.dt_rank}; a positive whole number, or None, is needed")
        if not all(0 <= i < self.depth for i in self.dwconv_layers):
            raise ModelError(f"dwconv_layers {self.dwconv_layers} are not all among the layers 0 to {self.depth - 1}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of an input of ``img_size``."""
        height, width = self.img_size
        return math.ceil(height / self.patch_size), math.ceil(width / self.patch_size)


class PatchEmbed(nn.Module):
    """Patches to tokens: convolutions at half the resolution, then one as wide as the rest of the patch."""

    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        self.patch = config.patch_size // STEM_STRIDE
        self.stem = nn.Sequential(*_conv_norm_relu(config.in_chans, 7, STEM_STRIDE))
        self.convs = nn.Sequential(*(m for _ in range(config.num_convs) for m in _conv_norm_relu(STEM_WIDTH, 3, 1)))
        self.projection = nn.Conv2d(STEM_WIDTH, config.embed_dim, self.patch, self.patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / patch, W / patch, C), both rounded up."""
        x = self.convs(self.stem(x))
        height, width, patch = x.shape[2], x.shape[3], self.patch
        if not (isinstance(height, int) and isinstance(width, int) and height % patch == width % patch == 0):
            # As many zeros as any size may lack: the convolution leaves out what does not fill a patch, and a traced graph
            # gets no arithmetic on symbolic sizes.
            x = F.pad(x, (0, patch - 1, 0, patch - 1))
        return self.projection(x).permute(0, 2, 3, 1)


def _conv_norm_relu(channels: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, STEM_WIDTH, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(STEM_WIDTH), nn.ReLU(inplace=True)


class PlainMambaLayer(nn.Module):
    """A mixer with a norm before it and a residual around it; in some layers a depthwise convolution of the sum follows."""

    def __init__(self, config: PlainMambaConfig, index: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.mamba = PlainMambaMixer(
            dim,
            config.d_state,
            config.expand,
            config.d_conv,
            config.dt_rank,
            conv_bias=config.conv_bias,
            bias=config.bias,
            multiple=get_order(config.scan).multiple,
        )
        self.drop_path = DropPath(drop_path)
        if index in config.dwconv_layers:
            conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
            self.dw: nn.Module | None = nn.Sequential(conv, nn.BatchNorm2d(dim), nn.GELU())
        else:
            self.dw = None

    def forward(self, x: Tensor, around: Walks) -> Tensor:
        """(B, H, W, C) and the walks over its positions -> (B, H, W, C)."""
        x = x + self.drop_path(self.mamba(self.norm(x), around))
        if self.dw is not None:  # in the place of x: nothing goes around it
            x = self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class PlainMambaTrunk(nn.Module):
    """Everything but the classifier; a module of its own because its keys have a prefix of their own."""

    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        self.grid, self.scan = config.grid, config.scan
        self.patch_embed = PatchEmbed(config)
        positions = torch.empty(1, math.prod(config.grid), config.embed_dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.layers = nn.ModuleList(PlainMambaLayer(config, i, rate) for i, rate in enumerate(rates))
        self.ln1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        # It takes dt_proj with it, which so starts from zero bias instead of Mamba's spread of step sizes, as upstream's.
        self.apply(initialise_linear)

    def forward(self, x: Tensor, maps: list[Tensor] | None, grad_checkpointing: bool) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, C) normalised; ``maps`` gets the layers' results (B, C, h, w)."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x + self._positions(grid)
        around = walks(self.scan, grid, x.device)
        for layer in self.layers:
            x = checkpoint(layer, x, around, use_reentrant=False) if grad_checkpointing else layer(x, around)
            if maps is not None:
                maps.append(x.permute(0, 3, 1, 2))
        return self.ln1(x)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, h, w, C) position embedding of a grid."""
        # Only plain extents are compared: a comparison of symbolic ones would become a condition of the exported graph.
        own = all(isinstance(side, int) for side in grid) and grid == self.grid
        return (self.pos_embed if own else resize_grid(self.pos_embed, self.grid, grid)).unflatten(1, grid)


class LinearHead(nn.Module):
    """The mean over the map, and a classifier under upstream's name."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.fc = make_head(features, num_classes)
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> logits (B, num_classes), or the classifier's input (B, C)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.fc(x)


class PlainMamba(Backbone):
    """PlainMamba. Keys of the state are those of the official classifier (ChenhongyiYang/PlainMamba, an mmcls model)."""

    classifier_path = "head.fc"
    norm_path = "backbone.ln1"
    first_conv = "backbone.patch_embed.stem.0"

    config: PlainMambaConfig

    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "plain_mamba"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.embed_dim
        self.backbone = PlainMambaTrunk(config)
        self.head = LinearHead(config.embed_dim, config.num_classes)
        self.feature_info = [
            {"num_chs": config.embed_dim, "reduction": config.patch_size, "module": f"backbone.layers.{i}"}
            for i in range(config.depth)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, h, w, C) normalised map, channels last.

        ``maps`` are of every layer.
        """
        return self.backbone(x, maps, self.grad_checkpointing and self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> logits (B, num_classes), or the classifier's input (B, C)."""
        return self.head(x, pre_logits)


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "L1": {"embed_dim": 192, "depth": 24, "num_convs": 1, "dwconv_layers": (0,)},
    "L2": {"embed_dim": 384, "depth": 24, "num_convs": 2, "dwconv_layers": ()},
    "L3": {"embed_dim": 448, "depth": 36, "num_convs": 2, "dwconv_layers": ()},
}
# Keywords of upstream's three constructors -> ours.
_BACKBONE_NAMES = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "in_channels": "in_chans",
    "embed_dims": "embed_dim",
    "num_layers": "depth",
    "num_convs_patch_embed": "num_convs",
    "layers_with_dwconv": "dwconv_layers",
    "drop_path_rate": "drop_path_rate",
}
_MIXER_NAMES = {
    "d_state": "d_state",
    "expand": "expand",
    "conv_size": "d_conv",
    "conv_bias": "conv_bias",
    "bias": "bias",
    "dt_rank": "dt_rank",
}
_HEAD_NAMES = {"num_classes": "num_classes"}
# Starts that are overwritten, a grid for which upstream computes its walks beforehand, and what concerns training alone.
_MIXER_INERT = ("dt_init", "dt_min", "dt_max", "dt_scale", "dt_init_floor", "default_hw_shape")
# What is left out stands upstream for other values than our defaults, which are L1's.
_BACKBONE_DEFAULTS: dict[str, Any] = {"num_layers": 20, "layers_with_dwconv": (), "drop_path_rate": 0.0}
_MIXER_DEFAULTS: dict[str, Any] = {"bias": False}
# Flags of which this package has one value only: those of every classifier that was published.
_BACKBONE_FIXED: dict[str, tuple[Any, ...]] = {
    "drop_rate": (0, 0.0),
    "final_norm": (True,),
    "interpolate_mode": ("bicubic",),
    "norm_cfg": ({"type": "LN", "eps": 1e-6},),
    "out_indices": (-1, [-1], (-1,)),
    "with_pos_embed": (True,),
}
# Of training, or read by nothing.
_BACKBONE_INERT = ("convert_syncbn", "freeze_patch_embed", "init_cfg", "test_cfg")
_HEAD_INERT = ("type", "in_channels", "loss", "topk", "init_cfg")
_CLASSIFIER_INERT = ("cls", "init_cfg", "train_cfg", "pretrained")


def config_from_upstream(config: Mapping[str, Any]) -> PlainMambaConfig:
    """The official configuration of an mmcls ``ImageClassifier`` (commit 0975a1d) with a ``PlainMamba`` in it, as ours."""
    pick("plain_mamba", config, {}, ("type", "backbone", "neck", "head", *_CLASSIFIER_INERT))
    backbone, head = dict(config.get("backbone", {})), dict(config.get("head", {}))
    layer = dict(backbone.pop("layer_cfgs", {}))
    mixer = dict(layer.pop("mamba_cfg", {}))
    _require("type", config.get("type"), (None, "ImageClassifier"))
    _require("backbone.type", backbone.pop("type", None), (None, "PlainMamba"))
    _require("neck.type", dict(config.get("neck", {})).get("type"), (None, "CustomAveragePooling"))
    _require("head.type", head.get("type"), (None, "LinearClsHead"))
    _require("use_rms_norm", layer.pop("use_rms_norm", False), (False,))
    _require("mamba_cfg.init_layer_scale", mixer.pop("init_layer_scale", None), (None,))
    pick("plain_mamba", layer, {}, ())

    arch = backbone.pop("arch", None)
    _require("arch", arch, (None, *_ARCHITECTURES))
    for flag, values in _BACKBONE_FIXED.items():
        _require(f"backbone.{flag}", backbone.pop(flag, values[0]), values)
    options = pick("plain_mamba", {**_BACKBONE_DEFAULTS, **backbone}, _BACKBONE_NAMES, _BACKBONE_INERT)
    mixer_options = pick("plain_mamba", {**_MIXER_DEFAULTS, **mixer}, _MIXER_NAMES, _MIXER_INERT)
    # A named architecture wins over whatever else is said of what it names, its mixers among them.
    options |= mixer_options if arch is None else {"patch_size": 16, **_ARCHITECTURES[arch]}
    options |= pick("plain_mamba", head, _HEAD_NAMES, _HEAD_INERT)
    if options.get("dt_rank") == "auto":
        options["dt_rank"] = None
    ours = PlainMambaConfig(**options)
    _require("head.in_channels", head.get("in_channels", ours.embed_dim), (ours.embed_dim,))
    return ours


def _require(flag: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ModelError(f"plain_mamba: upstream's {flag}={value!r} is not supported")


def _recognise(keys: Collection[str]) -> bool:
    return any(key.endswith("layers.0.mamba.direction_Bs") for key in keys)


def rename_checkpoint_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released checkpoint's tensors without the buffers of upstream's averaging hook.

    Those of L2 and L3 were written with it: the weights themselves hold the average when they are written, and what they were
    without it lies beside them under ``ema_`` and the name with underscores for dots. Evaluation reads the former.
    """
    return {key: value for key, value in state.items() if not key.startswith("ema_")}


register_family(
    Family(
        name="plain_mamba",
        title="PlainMamba",
        paper="Yang et al., arXiv:2403.17695",
        config=PlainMambaConfig,
        build=PlainMamba,
        from_upstream=config_from_upstream,
        recognise=_recognise,
        adapt=rename_checkpoint_keys,
    )
)


def _register(arch: str, params: int, top1: float, drop_path_rate: float) -> None:
    register_model(
        ModelEntry(
            name=f"plain_mamba_{arch.lower()}",
            family="plain_mamba",
            config=PlainMambaConfig(**_ARCHITECTURES[arch], drop_path_rate=drop_path_rate),
            preprocessing=Preprocessing(size=(224, 224)),
            params=params,
            aliases=(f"PlainMamba-{arch}",),
            top1=top1,
            source="ChenhongyiYang/PlainMamba README",
        )
    )


_register("L1", 7_551_656, 77.9, 0.2)
_register("L2", 26_145_832, 81.6, 0.2)
_register("L3", 50_956_456, 82.3, 0.4)
