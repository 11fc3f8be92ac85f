"""VMamba: blocks that scan the map in four directions, in stages of falling resolution (Liu et al., arXiv:2401.10166)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, LayerNorm2d, Mlp, Permute, drop_path_rates, initialise_linear
from edgemamba.train.models.merging import Downsample, make_downsample
from edgemamba.train.models.options import check_options, check_scan, pair
from edgemamba.train.models.scan_stage import ScanStage
from edgemamba.train.models.ss2d import DIRECTIONS, SS2D, Gate
from edgemamba.train.models.vmamba_keys import recognise, rename_checkpoint_keys
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order

EPS = 1e-5


@dataclass(frozen=True)
class VMambaConfig:
    """Options of :class:`VMamba`; the defaults are those of the current VMamba-T (``vmamba_t``).

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size.
        stem: one convolution of ``patch_size`` pixels and stride (``patch``), or two that overlap, each with half of its
            stride (``overlap``).
        downsample: between stages: patch merging, a 2 x 2 convolution, or one of 3 x 3, all with stride 2. Odd sides are
            rounded down by ``conv2``, up by the others. (Upstream's merging of January 2024, with which the vanilla models were
            trained, left odd rows and columns out; at 224 pixels there are none, and ``merge`` pads as upstream does now.)
        dims, depths: channels and blocks of each stage.
        d_state: states for each inner channel of the scans.
        expand: inner channels of the scans for each channel.
        dt_rank: channels of the step size's projection; None for a sixteenth of the stage's, rounded up.
        conv_bias: whether the convolutions before the scans have one.
        gate, out_act: what happens to the scans' results, see :class:`edgemamba.train.models.ss2d.SS2D`.
        mlp_ratio: hidden channels of the blocks' MLPs for each channel; 0 for blocks without.
        ssm_drop_rate, mlp_drop_rate: dropout of the scans' results, and in the MLPs.
        scan: a registered order of four directions, or one that extends to four. For orders of windows, and atrous ones, the
            scans are of maps padded with zeros to whole windows.
        out_indices: stages whose maps a dense backbone (``Backbone_VSSM`` in the official code) returns, each through its
            own norm, instead of logits; empty for a classifier.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    stem: Literal["patch", "overlap"] = "overlap"
    downsample: Downsample = "conv3"
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    expand: float = 1.0
    dt_rank: int | None = None
    conv_bias: bool = False
    gate: Gate = "none"
    out_act: bool = False
    mlp_ratio: float = 4.0
    ssm_drop_rate: float = 0.0
    mlp_drop_rate: float = 0.0
    drop_path_rate: float = 0.2
    scan: str = "cross"
    out_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        for name in ("dims", "depths", "out_indices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_options(self)
        check_scan(self.scan, (DIRECTIONS,))
        if len(self.dims) != len(self.depths) or not self.dims or min(*self.dims, *self.depths) < 1:
            raise ModelError(f"dims {self.dims} and depths {self.depths} are not of the same stages")
        if int(self.expand * min(self.dims)) < 1 or self.mlp_ratio < 0:
            raise ModelError(f"expand {self.expand} and mlp_ratio {self.mlp_ratio}: the first must be positive")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ModelError(f"dt_rank is {self.dt_rank}; a positive whole number, or None, is needed")
        if self.stem == "overlap" and (self.patch_size % 2 or self.dims[0] % 2):
            raise ModelError(f"patch_size {self.patch_size} and dims[0] {self.dims[0]}: stem='overlap' needs even ones")
        if len(set(self.out_indices)) < len(self.out_indices) or not set(self.out_indices) <= set(
            range(len(self.dims))
        ):
            raise ModelError(f"out_indices {self.out_indices} are not different stages of 0 to {len(self.dims) - 1}")
        smallest = self.stem_stride * (2 ** (len(self.dims) - 1) if self.downsample == "conv2" else 1)
        if min(self.img_size) < smallest:
            raise ModelError(f"img_size {self.img_size} leaves nothing for the last stage: at least {smallest} pixels")

    @property
    def stem_stride(self) -> int:
        """Pixels that a position of the stem's result stands for, each way."""
        return self.patch_size if self.stem == "patch" else (self.patch_size // 2) ** 2


class VMambaBlock(nn.Module):
    """A scan and, in all but the first models, an MLP: each with a norm before it and a residual around it."""

    def __init__(self, config: VMambaConfig, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.op = SS2D(
            dim,
            config.d_state,
            config.expand,
            config.ssm_drop_rate,
            conv_bias=config.conv_bias,
            dt_rank=config.dt_rank,
            gate=config.gate,
            out_act=config.out_act,
            multiple=get_order(config.scan).multiple,
        )
        self.drop_path = DropPath(drop_path)
        if config.mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim, eps=EPS)
            self.mlp: nn.Module | None = Mlp(dim, int(dim * config.mlp_ratio), config.mlp_drop_rate)
        else:
            self.mlp = None

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) and an order (4, S) of its positions, or of the enlarged map's -> (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x), order))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class VMamba(Backbone):
    """VMamba (``VSSM`` in the official code, MzeroMiko/VMamba, whose state keys these are: those of ``classification/``).

    Maps are channels-last throughout. Upstream's ``norm_layer="ln2d"`` is the same computation on maps with the channels
    first, with the same weights.
    """

    classifier_path = "classifier.head"
    norm_path = "classifier.norm"
    first_conv = "patch_embed.0"

    config: VMambaConfig

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "vmamba"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.dims[-1]
        self.out_indices = config.out_indices

        self.patch_embed = make_stem(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        following = (*config.dims[1:], None)
        multiple = get_order(config.scan).multiple
        self.layers = nn.ModuleList()
        for dim, depth, out_dim in zip(config.dims, config.depths, following, strict=True):
            blocks = [VMambaBlock(config, dim, next(rates)) for _ in range(depth)]
            downsample = nn.Identity() if out_dim is None else make_downsample(config.downsample, dim, out_dim)
            self.layers.append(ScanStage(blocks, downsample, config.scan, multiple))
        self.classifier = nn.ModuleDict()
        if not self.out_indices:
            self.classifier["norm"] = nn.LayerNorm(self.num_features, eps=EPS)
            self.classifier["head"] = make_head(self.num_features, config.num_classes)
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", LayerNorm2d(config.dims[i], eps=EPS))
        # Parameters that are in no Linear (the stacked ones of SS2D) keep their own start, as upstream.
        self.apply(initialise_linear)
        self.feature_info = [
            {"num_chs": dim, "reduction": config.stem_stride * 2**i, "module": f"layers.{i}"}
            for i, dim in enumerate(config.dims)
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


def make_stem(config: VMambaConfig) -> nn.Sequential:
    """(B, 3, H, W) -> (B, h, w, C), normalised. The indices are part of upstream's keys."""
    dim, patch = config.dims[0], config.patch_size
    to_last, to_first = Permute(0, 2, 3, 1), Permute(0, 3, 1, 2)
    if config.stem == "patch":
        return nn.Sequential(nn.Conv2d(config.in_chans, dim, patch, patch), to_last, nn.LayerNorm(dim, eps=EPS))
    half, stride = dim // 2, patch // 2
    return nn.Sequential(
        nn.Conv2d(config.in_chans, half, stride + 1, stride, padding=1),
        to_last,
        nn.LayerNorm(half, eps=EPS),
        to_first,
        nn.GELU(),
        nn.Conv2d(half, dim, stride + 1, stride, padding=1),
        to_last,
        nn.LayerNorm(dim, eps=EPS),
    )


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "ssm_d_state": "d_state",
    "ssm_ratio": "expand",
    "ssm_dt_rank": "dt_rank",
    "ssm_conv_bias": "conv_bias",
    "ssm_drop_rate": "ssm_drop_rate",
    "mlp_ratio": "mlp_ratio",
    "mlp_drop_rate": "mlp_drop_rate",
    "drop_path_rate": "drop_path_rate",
    "imgsize": "img_size",
    "out_indices": "out_indices",
    "patchembed_version": "stem",
    "downsample_version": "downsample",
}
# Its defaults, where they are not ours.
_UPSTREAM_DEFAULTS: dict[str, Any] = {
    "depths": (2, 2, 9, 2),
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": True,
    "drop_path_rate": 0.1,
    "patchembed_version": "v1",
    "downsample_version": "v2",
    "forward_type": "v2",
}
# Of a dense backbone; the second is its registration with detectors and segmenters.
_DENSE = ("Backbone_VSSM", "MM_VSSM")
_STEMS = {"v1": "patch", "v2": "overlap"}
_DOWNSAMPLES = {"v1": "merge", "v2": "conv2", "v3": "conv3"}
# Flags of which this package has one value only, or several that are the same computation.
_UPSTREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "cls": (None, "VSSM", *_DENSE),
    "ssm_act_layer": ("silu",),
    "ssm_conv": (3,),
    "mlp_act_layer": ("gelu",),
    "gmlp": (False,),
    "patch_norm": (True,),
    "norm_layer": ("ln", "LN", "ln2d", "LN2D"),
    "posembed": (False,),
    "patchembed_version": tuple(_STEMS),
    "downsample_version": tuple(_DOWNSAMPLES),
}
# Of the weights' start, of memory, and of where a dense backbone's weights come from.
_UPSTREAM_INERT = ("ssm_init", "use_checkpoint", "pretrained")

# What a forward_type begins with: implementations of the same sum over directions, except where these are walked otherwise.
_CORES = dict.fromkeys(("v01", "v02", "v03", "v04", "v05", "v3"), "cross") | {
    "v051d": "cross-unidirectional",
    "v052d": "cross-bidirectional",
}


def config_from_upstream(config: Mapping[str, Any]) -> VMambaConfig:
    """The keywords of the official ``VSSM`` or ``Backbone_VSSM`` (commit 2ed52ea), with its defaults, as ours."""
    config = _UPSTREAM_DEFAULTS | dict(config)
    for flag, values in _UPSTREAM_FIXED.items():
        if flag in config and config[flag] not in values:
            raise ModelError(f"vmamba: upstream's {flag}={config[flag]!r} is not supported")
    options = pick("vmamba", config, _UPSTREAM_NAMES, (*_UPSTREAM_FIXED, *_UPSTREAM_INERT, "forward_type"))
    options |= _options_of_forward_type(str(config["forward_type"]))
    options["stem"], options["downsample"] = _STEMS[options["stem"]], _DOWNSAMPLES[options["downsample"]]
    options["mlp_ratio"] = max(0.0, options.get("mlp_ratio", 4.0))
    if options.get("dt_rank") == "auto":
        options["dt_rank"] = None
    if isinstance(options.get("dims"), int):
        options["dims"] = [options["dims"] * 2**i for i in range(len(options["depths"]))]
    dense = config.get("cls") in _DENSE
    if not dense and options.get("out_indices"):
        raise ModelError("vmamba: upstream's out_indices is a flag of Backbone_VSSM alone")
    return VMambaConfig(**({"out_indices": (0, 1, 2, 3)} if dense else {}) | options)


def _options_of_forward_type(forward_type: str) -> dict[str, Any]:
    """What upstream's ``forward_type`` stands for: a core, and suffixes, which it takes off the end in this order."""
    if forward_type == "v0":
        return {"gate": "silu"}
    core, found = forward_type, set()
    for suffix in ("_no32", "_oact", "_noz", "_nozact"):
        if core.endswith(suffix):
            core = core.removesuffix(suffix)
            found.add(suffix)
    if core not in _CORES:
        raise ModelError(
            f"vmamba: upstream's forward_type={forward_type!r} is not supported: v0, or one of {', '.join(_CORES)} followed "
            "by any of _nozact, _noz, _oact, _no32 in this order"
        )
    gate = "none" if "_noz" in found else "linear" if "_nozact" in found else "silu"
    return {"gate": gate, "out_act": "_oact" in found, "scan": _CORES[core]}


register_family(
    Family(
        name="vmamba",
        title="VMamba",
        paper="Liu et al., arXiv:2401.10166",
        config=VMambaConfig,
        build=VMamba,
        from_upstream=config_from_upstream,
        recognise=recognise,
        adapt=rename_checkpoint_keys,
    )
)

# Of the models of January 2024, but for their sizes.
_VANILLA: dict[str, Any] = {
    "stem": "patch",
    "downsample": "merge",
    "d_state": 16,
    "expand": 2.0,
    "conv_bias": True,
    "gate": "silu",
    "mlp_ratio": 0.0,
}


def _register(
    name: str, upstream: str, dim: int, depth: int, params: int, top1: float, drop_path_rate: float, **options: Any
) -> None:
    register_model(
        ModelEntry(
            name=name,
            family="vmamba",
            config=VMambaConfig(
                dims=tuple(dim * 2**i for i in range(4)),
                depths=(2, 2, depth, 2),
                drop_path_rate=drop_path_rate,
                **options,
            ),
            preprocessing=Preprocessing(size=(224, 224)),
            params=params,
            aliases=(upstream,),
            top1=top1,
            source="MzeroMiko/VMamba README",
        )
    )


_register("vanilla_vmamba_t", "vanilla_vmamba_tiny", 96, 9, 22_893_448, 82.2, 0.2, **_VANILLA)
_register("vanilla_vmamba_s", "vanilla_vmamba_small", 96, 27, 44_417_416, 83.5, 0.3, **_VANILLA)
_register("vanilla_vmamba_b", "vanilla_vmamba_base", 128, 27, 76_254_056, 83.7, 0.6, **_VANILLA)
_register("vmamba_t", "vmamba_tiny_s1l8", 96, 8, 30_249_064, 82.6, 0.2)
_register("vmamba_s", "vmamba_small_s1l20", 96, 20, 49_012_840, 83.3, 0.3)
_register("vmamba_b", "vmamba_base_s1l20", 128, 20, 86_614_504, 83.8, 0.5)
_register("vmamba_t_s2l5", "vmamba_tiny_s2l5", 96, 5, 30_705_832, 82.5, 0.2, expand=2.0)
_register("vmamba_s_s2l15", "vmamba_small_s2l15", 96, 15, 50_147_752, 83.6, 0.3, expand=2.0)
_register("vmamba_b_s2l15", "vmamba_base_s2l15", 128, 15, 88_557_800, 83.9, 0.6, expand=2.0)
