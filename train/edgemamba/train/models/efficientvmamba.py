"""EfficientVMamba: scans of every second position, in four parts, beside convolutions (Pei et al., arXiv:2403.09977)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.efficientvmamba_blocks import ConvStage, EVSSBlock, InvertedResidual
from edgemamba.train.models.es2d import ES2D
from edgemamba.train.models.layers import LayerNorm2d, Permute, drop_path_rates, initialise_linear
from edgemamba.train.models.merging import Downsample, make_downsample
from edgemamba.train.models.options import check_options, check_scan, pair
from edgemamba.train.models.scan_stage import ScanStage
from edgemamba.train.models.ss2d import DIRECTIONS, SS2D
from edgemamba.train.models.vmamba_keys import current_name
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order

EPS = 1e-5
# The published order.
ATROUS = "atrous2"
# The first stages scan; in the others the maps are small enough for convolutions to see enough of them.
SCAN_STAGES = 2
# Below this many channels a stage that scans has no channels left to compute its gates from.
MIN_SCAN_DIM = 8


@dataclass(frozen=True)
class EfficientVMambaConfig:
    """Options of :class:`EfficientVMamba`; the defaults are EfficientVMamba-T's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size.
        patch_size: size and stride of the stem's convolution.
        dims, depths: channels and blocks of each stage. The first two stages scan.
        d_state: states for each inner channel of the scans.
        expand: inner channels of the scans for each channel.
        mlp_ratio: hidden channels of the scanning blocks' MLPs for each channel; 0, as in all published models, for none.
        downsample: between stages, see :func:`edgemamba.train.models.merging.make_downsample`.
        drop_rate: dropout in the MLPs.
        scan: a registered order of four directions, or one that extends to four. Those other than ``atrous2`` visit every
            position four times, and cost so much more. For orders of windows, maps are padded to whole ones.
        out_indices: stages whose maps a dense backbone (``Backbone_EfficientVSSM`` in the official code) returns, each
            through its own norm, instead of logits; empty for a classifier.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (2, 2, 4, 2)
    d_state: int = 16
    expand: float = 2.0
    mlp_ratio: float = 0.0
    downsample: Downsample = "merge"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    scan: str = ATROUS
    out_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        for name in ("dims", "depths", "out_indices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_options(self)
        check_scan(self.scan, (DIRECTIONS,))
        stages = range(len(self.dims))
        if len(self.dims) != len(self.depths) or not self.dims or min(*self.dims, *self.depths) < 1:
            raise ModelError(f"dims {self.dims} and depths {self.depths} are not of the same stages")
        if min(self.dims[:SCAN_STAGES]) < MIN_SCAN_DIM:
            raise ModelError(f"dims {self.dims}: the first {SCAN_STAGES} stages need at least {MIN_SCAN_DIM} channels")
        if self.expand * min(self.dims) < 1 or self.mlp_ratio < 0:
            raise ModelError(f"expand {self.expand} and mlp_ratio {self.mlp_ratio}: the first must be positive")
        if len(set(self.out_indices)) < len(self.out_indices) or not set(self.out_indices) <= set(stages):
            raise ModelError(f"out_indices {self.out_indices} are not different stages of 0 to {stages[-1]}")
        smallest = self.patch_size * (2 ** stages[-1] if self.downsample == "conv2" else 1)
        if min(self.img_size) < smallest:
            raise ModelError(f"img_size {self.img_size} leaves nothing for the last stage: at least {smallest} pixels")

    @property
    def multiple(self) -> int:
        """What the sides of a map have to be multiples of for the order ``scan``."""
        return get_order(self.scan).multiple


class EfficientVMamba(Backbone):
    """EfficientVMamba (``EfficientVSSM`` in the official code, TerryPei/EfficientVMamba, whose state keys these are)."""

    classifier_path = "classifier.head"
    norm_path = "classifier.norm"
    first_conv = "patch_embed.0"

    config: EfficientVMambaConfig

    def __init__(self, config: EfficientVMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "efficientvmamba"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.dims[-1]
        self.out_indices = config.out_indices

        dim, patch = config.dims[0], config.patch_size
        stem = nn.Conv2d(config.in_chans, dim, patch, patch)
        self.patch_embed = nn.Sequential(stem, Permute(0, 2, 3, 1), nn.LayerNorm(dim, eps=EPS))
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        following = (*config.dims[1:], None)
        self.layers = nn.ModuleList()
        for i, (dim, depth, out_dim) in enumerate(zip(config.dims, config.depths, following, strict=True)):
            drop_paths = [next(rates) for _ in range(depth)]
            downsample = nn.Identity() if out_dim is None else make_downsample(config.downsample, dim, out_dim, EPS)
            stage: nn.Module
            if i < SCAN_STAGES:
                blocks = [make_scan_block(config, dim, drop_path) for drop_path in drop_paths]
                stage = ScanStage(blocks, downsample, config.scan, config.multiple)
            else:
                stage = ConvStage([InvertedResidual(dim, drop_path) for drop_path in drop_paths], downsample)
            self.layers.append(stage)
        self.classifier = nn.ModuleDict()
        if not self.out_indices:
            self.classifier["norm"] = nn.LayerNorm(self.num_features, eps=EPS)
            self.classifier["head"] = make_head(self.num_features, config.num_classes)
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", LayerNorm2d(config.dims[i], eps=EPS))
        # Parameters that are in no Linear (the stacked ones of SS2D) keep their own start, as upstream.
        self.apply(initialise_linear)
        self.feature_info = [
            {"num_chs": dim, "reduction": patch * 2**i, "module": f"layers.{i}"} for i, dim in enumerate(config.dims)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, h, w, C) map of the last stage, channels last; normed in a classifier."""
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x, self.grad_checkpointing and self.training, maps)
        return x if self.out_indices else self.classifier["norm"](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> logits (B, num_classes), or the classifier's input (B, C)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.classifier["head"](x)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every :class:`Backbone`; here the downsampling of a stage without scans is the last entry of the stage."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        last = max(taken)
        stage = self.layers[last]
        if isinstance(stage, ConvStage) and not isinstance(stage[-1], nn.Identity):
            stage[-1] = nn.Identity()
            self._pruned += (f"layers.{last}.{len(stage) - 1}",)
        return taken


def make_scan_block(config: EfficientVMambaConfig, dim: int, drop_path: float) -> EVSSBlock:
    """One of the first stages' blocks."""
    op = (
        ES2D(dim, config.d_state, config.expand)
        if config.scan == ATROUS
        else SS2D(dim, config.d_state, config.expand, multiple=config.multiple)
    )
    return EVSSBlock(dim, op, config.mlp_ratio, config.drop_rate, drop_path)


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "ssm_ratio": "expand",
    "mlp_ratio": "mlp_ratio",
    "downsample_version": "downsample",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "out_indices": "out_indices",
}
# Its defaults, where they are not ours.
_UPSTREAM_DEFAULTS: dict[str, Any] = {
    "depths": (2, 2, 9, 2),
    "dims": (96, 192, 384, 768),
    "mlp_ratio": 4.0,
    "downsample_version": "v2",
}
_DOWNSAMPLES: dict[str, Downsample] = {"v1": "merge", "v2": "conv2", "v3": "conv3"}
# The second is its registration with detectors and segmenters.
_DENSE = ("Backbone_EfficientVSSM", "MM_EfficientVSSM")
# Flags of which this package has one value only. Of an atrous scan with steps of more than two, four directions do not cover
# the map.
_UPSTREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "cls": (None, "EfficientVSSM", *_DENSE),
    "downsample_version": tuple(_DOWNSAMPLES),
    "norm_layer": ("ln", "LN", "LayerNorm", "nn.LayerNorm"),
    "patch_norm": (True,),
    "step_size": (2,),
}
# What upstream's constructor takes and does not use (its models have 16 states and the automatic rank, whatever these say), and
# of memory, and of where a dense backbone's weights come from.
_UPSTREAM_INERT = (
    "attn_drop_rate",
    "d_state",
    "dt_rank",
    "pretrained",
    "shared_ssm",
    "softmax_version",
    "use_checkpoint",
    "window_size",
)


def config_from_upstream(config: Mapping[str, Any]) -> EfficientVMambaConfig:
    """The keywords of the official ``EfficientVSSM`` or its dense form (commit 0bc5ee2), with its defaults, as ours."""
    config = _UPSTREAM_DEFAULTS | dict(config)
    for flag, values in _UPSTREAM_FIXED.items():
        if flag in config and config[flag] not in values:
            raise ModelError(f"efficientvmamba: upstream's {flag}={config[flag]!r} is not supported")
    options = pick("efficientvmamba", config, _UPSTREAM_NAMES, (*_UPSTREAM_FIXED, *_UPSTREAM_INERT))
    options["downsample"] = _DOWNSAMPLES[options["downsample"]]
    options["mlp_ratio"] = max(0.0, options["mlp_ratio"])
    if not 0 < options.get("expand", 2.0) <= 2:
        # Upstream's layers then have narrower inner projections, which no model of it uses.
        raise ModelError(f"efficientvmamba: upstream's ssm_ratio={options['expand']!r} is not supported: at most 2")
    if isinstance(options["dims"], int):
        options["dims"] = [options["dims"] * 2**i for i in range(len(options["depths"]))]
    dense = config.get("cls") in _DENSE
    if not dense and options.get("out_indices"):
        raise ModelError(f"efficientvmamba: upstream's out_indices is a flag of {_DENSE[0]} alone")
    return EfficientVMambaConfig(**({"out_indices": (0, 1, 2, 3)} if dense else {}) | options)


def _recognise(keys: Collection[str]) -> bool:
    return any(".se.channel_select." in key for key in keys)


def rename_checkpoint_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under today's names: upstream, which began as VMamba, still reads VMamba's first ones."""
    return {current_name(key): value for key, value in state.items()}


register_family(
    Family(
        name="efficientvmamba",
        title="EfficientVMamba",
        paper="Pei et al., arXiv:2403.09977",
        config=EfficientVMambaConfig,
        build=EfficientVMamba,
        from_upstream=config_from_upstream,
        recognise=_recognise,
        adapt=rename_checkpoint_keys,
    )
)


def _register(size: str, dim: int, depth: int, params: int, top1: float) -> None:
    register_model(
        ModelEntry(
            name=f"efficientvmamba_{size[0]}",
            family="efficientvmamba",
            config=EfficientVMambaConfig(dims=tuple(dim * 2**i for i in range(4)), depths=(2, 2, depth, 2)),
            preprocessing=Preprocessing(size=(224, 224)),
            params=params,
            aliases=(f"efficientvmamba_{size}",),
            top1=top1,
            source="TerryPei/EfficientVMamba README",
        )
    )


_register("tiny", 48, 4, 6_493_660, 76.5)
# 64 channels as in the official log and the README's 11 M parameters; the repository's own configuration file says 96.
_register("small", 64, 4, 11_273_688, 78.7)
_register("base", 96, 9, 33_717_136, 81.8)
