"""MedMamba: a convolution beside a four-directional scan in every block (Yue & Li, arXiv:2403.03849)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models.backbone import Backbone, make_head
from edgemamba.train.models.layers import DropPath, drop_path_rates, initialise_linear
from edgemamba.train.models.merging import PatchMerging
from edgemamba.train.models.options import check_options, check_scan, pair
from edgemamba.train.models.scan_stage import ScanStage
from edgemamba.train.models.ss2d import DIRECTIONS, SS2D
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import get_order


@dataclass(frozen=True)
class MedMambaConfig:
    """Options of :class:`MedMamba`; the defaults are MedMamba-T's.

    Attributes:
        img_size: height and width of the pictures it is meant for, in pixels; one number for both. The model takes any
            size of at least ``patch_size * 2 ** (stages - 1)`` pixels a side.
        patch_size: size and stride of the stem's convolution.
        dims: channels of each stage; each stage has twice those of the one before, all even.
        depths: blocks of each stage.
        d_state: states for each inner channel of the scans.
        drop_rate, attn_drop_rate: dropout after the stem and of the scans' results.
        scan: a registered order of four directions, or one that extends to four. For orders of windows, and atrous ones, the
            scans are of maps padded with zeros to whole windows.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 4, 2)
    d_state: int = 16
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    scan: str = "cross"

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))
        check_options(self)
        check_scan(self.scan, (DIRECTIONS,))
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "depths", tuple(self.depths))
        if len(self.dims) != len(self.depths) or not self.dims:
            raise ModelError(f"dims {self.dims} and depths {self.depths} are not of the same stages")
        if self.dims[0] % 2 or any(b != 2 * a for a, b in zip(self.dims, self.dims[1:], strict=False)):
            raise ModelError(f"dims {self.dims}: the first must be even, and each of the others twice the one before")
        smallest = self.patch_size * 2 ** (len(self.dims) - 1)
        if min(self.img_size) < smallest:
            raise ModelError(
                f"img_size {self.img_size} leaves nothing for the last stage: at least {smallest} pixels a side"
            )


class SSConvSSM(nn.Module):
    """Half of the channels through convolutions, the other half through a scan, then shuffled into each other and added."""

    def __init__(self, dim: int, d_state: int, attn_drop: float, drop_path: float, multiple: int) -> None:
        super().__init__()
        half = dim // 2
        self.ln_1 = nn.LayerNorm(half, eps=1e-5)
        self.self_attention = SS2D(half, d_state, dropout=attn_drop, multiple=multiple)
        self.drop_path = DropPath(drop_path)
        # Upstream's name, and indices of a flat Sequential, are part of the keys.
        self.conv33conv33conv11 = nn.Sequential(
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) and an order (4, S) of its positions, or of the enlarged map's -> (B, H, W, C)."""
        left, right = x.chunk(2, dim=-1)
        left = self.conv33conv33conv11(left.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        right = self.drop_path(self.self_attention(self.ln_1(right), order))
        shuffled = torch.stack([left, right], dim=-1).flatten(-2)  # even channels: convolution; odd: scan
        return shuffled + x


class PatchEmbed(nn.Module):
    """Patches to a normalised channels-last map."""

    def __init__(self, config: MedMambaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, config.dims[0], config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.dims[0], eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H // patch, W // patch, C)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class MedMamba(Backbone):
    """MedMamba (``VSSM`` in the official code, YubiaoYue/MedMamba, whose state keys these are)."""

    config: MedMambaConfig

    def __init__(self, config: MedMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "medmamba"
        self.preprocessing = _preprocessing(config.img_size)
        self.num_classes, self.num_features = config.num_classes, config.dims[-1]

        self.patch_embed = PatchEmbed(config)
        self.pos_drop = nn.Dropout(config.drop_rate)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        multiple = get_order(config.scan).multiple
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            last = i == len(config.dims) - 1
            blocks = [
                SSConvSSM(dim, config.d_state, config.attn_drop_rate, next(rates), multiple) for _ in range(depth)
            ]
            downsample = nn.Identity() if last else PatchMerging(dim, 2 * dim, odd="crop")
            self.layers.append(ScanStage(blocks, downsample, config.scan, multiple))
        self.apply(_initialise)
        self.head = make_head(self.num_features, config.num_classes)
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size * 2**i, "module": f"layers.{i}"}
            for i, dim in enumerate(config.dims)
        ]

    def forward_features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, h, w, C) map of the last stage, channels last."""
        x = self.pos_drop(self.patch_embed(x))
        for stage in self.layers:
            x = stage(x, self.grad_checkpointing and self.training, maps)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> logits (B, num_classes), or the classifier's input (B, C). There is no last norm."""
        x = x.mean((1, 2))
        return x if pre_logits else self.head(x)


def _initialise(module: nn.Module) -> None:
    """Upstream's model-wide start: He's for every convolution, truncated normal for every Linear.

    Parameters that are not in such modules (the stacked projections of SS2D) keep theirs.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    initialise_linear(module)


def _preprocessing(size: tuple[int, int]) -> Preprocessing:
    """Of upstream's training script: the whole picture squashed to the size, values to -1..1."""
    half = (0.5, 0.5, 0.5)
    return Preprocessing(size=size, resize="squash", interpolation="bilinear", mean=half, std=half)


_UPSTREAM_NAMES = {
    name: name
    for name in (
        "patch_size",
        "in_chans",
        "num_classes",
        "depths",
        "dims",
        "d_state",
        "drop_rate",
        "attn_drop_rate",
        "drop_path_rate",
    )
}
# Of a decoder that nothing builds, of norms that are what they are, and of memory.
_UPSTREAM_INERT = ("cls", "depths_decoder", "dims_decoder", "norm_layer", "patch_norm", "use_checkpoint")


def config_from_upstream(config: Mapping[str, Any]) -> MedMambaConfig:
    """The keywords of the official ``VSSM`` (commit 104beb3), with its defaults, as ours."""
    if config.get("patch_norm", True) is not True:
        raise ModelError("medmamba: upstream's patch_norm=False is not supported")
    options = pick("medmamba", config, _UPSTREAM_NAMES, _UPSTREAM_INERT)
    if isinstance(options.get("dims"), int):
        stages = len(options.get("depths", MedMambaConfig.depths))
        options["dims"] = [options["dims"] * 2**i for i in range(stages)]
    return MedMambaConfig(**options)


def _recognise(keys: Collection[str]) -> bool:
    return any(".conv33conv33conv11." in key for key in keys)


register_family(
    Family(
        name="medmamba",
        title="MedMamba",
        paper="Yue & Li, arXiv:2403.03849",
        config=MedMambaConfig,
        build=MedMamba,
        from_upstream=config_from_upstream,
        recognise=_recognise,
    )
)


def _register(name: str, alias: str, dim: int, depths: tuple[int, ...], params: int) -> None:
    register_model(
        ModelEntry(
            name=f"medmamba_{name}",
            family="medmamba",
            # The six classes of upstream's own examples; params counts them.
            config=MedMambaConfig(num_classes=6, dims=tuple(dim * 2**i for i in range(4)), depths=depths),
            preprocessing=_preprocessing((224, 224)),
            params=params,
            aliases=(f"medmamba_{alias}",),
            source="YubiaoYue/MedMamba README, by data set",
        )
    )


_register("t", "tiny", 96, (2, 2, 4, 2), 14_457_222)
_register("s", "small", 96, (2, 2, 8, 2), 18_625_158)
_register("b", "base", 128, (2, 2, 12, 2), 39_864_838)
