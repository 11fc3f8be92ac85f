"""LocalVMamba: VMamba with four directions a layer, by windows too (LocalMamba, Huang et al., arXiv:2403.09338)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.attention_gate import BiAttention
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, Permute, drop_path_rates, initialise_linear
from edgemamba.train.models.local_directions import (
    ALL_DIRECTIONS,
    LOCAL_VMAMBA_TINY,
    LayerDirections,
    checked_directions,
)
from edgemamba.train.models.local_scan import LOCAL, MultiScan, Walk, check_layer_scan, layer_walks, scan_direction
from edgemamba.train.models.merging import PatchMerging
from edgemamba.train.models.options import check_options, pair
from edgemamba.train.models.ss2d import SS2D
from edgemamba.train.registry import pick

EPS = 1e-5


@dataclass(frozen=True)
class LocalVMambaConfig:
    """Options of :class:`LocalVMamba`; the defaults are LocalVMamba-T's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any size
            of at least ``patch_size``.
        patch_size: size and stride of the stem's convolution.
        dims, depths: channels and blocks of each stage.
        directions: those of each block, from the first stage to the last, such as ``("h", "v_flip", "w7", "w7_flip")``; None
            for the supernet, in which every block has all eight and weighs them.
        scan: ``local`` for those directions, or a registered scan order in the place of every block's.
        d_state: states for each inner channel of the scans.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 9, 2)
    directions: LayerDirections | None = LOCAL_VMAMBA_TINY
    scan: str = LOCAL
    d_state: int = 16
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        for name in ("dims", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_options(self)
        if len(self.dims) != len(self.depths) or not self.dims or min(*self.dims, *self.depths) < 1:
            raise ModelError(f"dims {self.dims} and depths {self.depths} are not of the same stages")
        object.__setattr__(self, "directions", checked_directions(self.directions, sum(self.depths)))
        check_layer_scan(self.scan, [names for stage in self.stages for names in stage])
        if min(self.img_size) < self.patch_size:
            raise ModelError(f"img_size {self.img_size} is smaller than a patch of {self.patch_size} pixels")

    @property
    def stages(self) -> list[Sequence[Sequence[str]]]:
        """The directions of each block of each stage."""
        blocks = [ALL_DIRECTIONS] * sum(self.depths) if self.directions is None else self.directions
        return [blocks[sum(self.depths[:i]) : sum(self.depths[: i + 1])] for i in range(len(self.depths))]


class LocalSS2D(SS2D):
    """The scan of a LocalVMamba block: as in VMamba, but each direction by itself and through a gate.

    Parameters beside those of :class:`SS2D`, of K directions here: ``multi_scan.attn``, and in a supernet
    ``multi_scan.weights`` (K, 1, 1, 1).

    Args:
        dim: C, channels of the map.
        directions: K.
        search: of a supernet: weigh the directions.
        d_state: N, states for each inner channel.
    """

    def __init__(self, dim: int, directions: int, search: bool = False, d_state: int = 16) -> None:
        super().__init__(dim, d_state, directions=directions)
        self.multi_scan = MultiScan(directions if search else 0, BiAttention(self.d_inner))

    def _scan(self, u: Tensor, walks: Sequence[Walk]) -> Tensor:  # type: ignore[override]  # in the place of an order
        """(B, L, E) -> the sum of the directions' gated scans, (B, L, E)."""
        results = []
        parameters = (
            self.x_proj_weight.unbind(),
            self.dt_projs_weight.unbind(),
            self.A_logs.chunk(len(walks)),
            self.Ds.chunk(len(walks)),
            self.dt_projs_bias.unbind(),
        )
        for walk, to_parts, dt_weight, A_log, D, bias in zip(walks, *parameters, strict=True):
            # Padding is zero, and so are its B and C: it adds nothing to the states and only lets them decay.
            padded = walk.pad(u)
            y = scan_direction(padded, F.linear(padded, to_parts), dt_weight, A_log, D, bias, walk.read)
            results.append(y.index_select(1, walk.origin) if walk.padded or not walk.in_place else y)
        return self.multi_scan(results)


class LocalVMambaBlock(nn.Module):
    """A scan with a norm before it and a residual around it."""

    def __init__(self, config: LocalVMambaConfig, dim: int, directions: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.op = LocalSS2D(dim, directions, config.directions is None, config.d_state)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, walks: Sequence[Walk]) -> Tensor:
        """(B, H, W, C) and the directions over its positions -> (B, H, W, C)."""
        return x + self.drop_path(self.op(self.norm(x), walks))


class LocalStage(nn.Module):
    """Blocks on maps of one size, each with directions of its own, then a downsampling (Identity in the last stage)."""

    def __init__(
        self, blocks: Sequence[nn.Module], downsample: nn.Module, directions: Sequence[Sequence[str]], scan: str
    ) -> None:
        super().__init__()
        self.directions, self.scan = directions, scan
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, grad_checkpointing: bool = False, maps: list[Tensor] | None = None) -> Tensor:
        """(B, H, W, C) -> what the downsampling makes of the blocks' result, which is appended to ``maps`` (B, C, H, W)."""
        layers = layer_walks(self.directions, self.scan, (x.shape[1], x.shape[2]), x.device)
        for block, walks in zip(self.blocks, layers, strict=True):
            x = checkpoint(block, x, walks, use_reentrant=False) if grad_checkpointing else block(x, walks)
        if maps is not None:
            maps.append(x.permute(0, 3, 1, 2))
        return self.downsample(x)


class LocalVMamba(Backbone):
    """LocalVMamba (``VSSM`` in the official code, hunto/LocalMamba, whose state keys these are)."""

    classifier_path = "classifier.head"
    norm_path = "classifier.norm"
    first_conv = "patch_embed.0"

    config: LocalVMambaConfig

    def __init__(self, config: LocalVMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "local_vmamba"
        self.preprocessing = Preprocessing(size=config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.dims[-1]

        # The indices are part of upstream's keys.
        self.patch_embed = nn.Sequential(
            nn.Conv2d(config.in_chans, config.dims[0], config.patch_size, config.patch_size),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(config.dims[0], eps=EPS),
        )
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        following = (*config.dims[1:], None)
        self.layers = nn.ModuleList()
        for dim, directions, out_dim in zip(config.dims, config.stages, following, strict=True):
            blocks = [LocalVMambaBlock(config, dim, len(names), next(rates)) for names in directions]
            downsample = nn.Identity() if out_dim is None else PatchMerging(dim, out_dim, "pad", EPS)
            self.layers.append(LocalStage(blocks, downsample, directions, config.scan))
        self.classifier = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(self.num_features, eps=EPS),
                "head": make_head(self.num_features, config.num_classes),
            }
        )
        # Parameters that are in no Linear (the stacked ones of SS2D) keep their own start, as upstream.
        self.apply(initialise_linear)
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size * 2**i, "module": f"layers.{i}"}
            for i, dim in enumerate(config.dims)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, h, w, C) normalised map of the last stage, channels last."""
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x, self.grad_checkpointing and self.training, maps)
        return self.classifier["norm"](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> logits (B, num_classes), or the classifier's input (B, C)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.classifier["head"](x)


# Upstream's constructor, keyword -> ours.
_UPSTREAM_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "ssm_d_state": "d_state",
    "drop_path_rate": "drop_path_rate",
}
# Flags of which this package has one value only.
_UPSTREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "norm_layer": ("ln", "LN"),
    "patch_norm": (True,),
    "ssm_act_layer": ("silu",),
    "ssm_conv": (3,),
    "ssm_conv_bias": (True,),
    "ssm_drop_rate": (0, 0.0),
    "ssm_dt_rank": ("auto",),
    "ssm_ratio": (2, 2.0),
}
# Of memory, of the weights' start, and what upstream swallows: its states are set by ssm_d_state, and it has no MLPs.
_UPSTREAM_INERT = ("cls", "d_state", "mlp_act_layer", "mlp_drop_rate", "mlp_ratio", "ssm_simple_init", "use_checkpoint")


def config_from_upstream(config: Mapping[str, Any]) -> LocalVMambaConfig:
    """The keywords of the official ``local_vmamba.VSSM`` (commit 75e5d1f) as ours."""
    for flag, values in _UPSTREAM_FIXED.items():
        if flag in config and config[flag] not in values:
            raise ModelError(f"local_vmamba: upstream's {flag}={config[flag]!r} is not supported")
    options = pick("local_vmamba", config, _UPSTREAM_NAMES, (*_UPSTREAM_FIXED, *_UPSTREAM_INERT, "directions"))
    directions = config.get("directions")
    searched = directions is None or all(names is None for names in directions)
    options["directions"] = None if searched else directions
    if isinstance(options.get("dims"), int):
        stages = len(options.get("depths", LocalVMambaConfig.depths))
        options["dims"] = [options["dims"] * 2**i for i in range(stages)]
    return LocalVMambaConfig(**options)
