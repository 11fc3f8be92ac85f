"""SegMamba: segmentation of volumes, a Mamba encoder and a convolutional decoder (Xing et al., arXiv:2401.13560)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.train.models.model import Model
from edgemamba.train.models.options import check_options
from edgemamba.train.models.segmamba_blocks import (
    Convolution,
    EncoderBlock,
    GatedSpatialConvolution,
    SkipMlp,
    UpBlock,
    instance_norm,
)
from edgemamba.train.models.segmamba_mixer import TriOrientedMixer
from edgemamba.train.registry import Family, ModelEntry, pick, register_family, register_model
from edgemamba.train.scan_orders import Size, scan_order

# Parts that the third walk of each stage goes through in turn, whatever the size of its input.
SLICES = (64, 32, 16, 8)
STRIDE = 2 ** len(SLICES)
# In the order of upstream's preprocessing of BraTS 2023.
BRATS_MODALITIES = ("t2w", "t2f", "t1n", "t1c")


@dataclass(frozen=True)
class SegMambaConfig:
    """Options of :class:`SegMamba`; the defaults are upstream's.

    Attributes:
        in_chans: modalities of the volume.
        num_classes: outputs for each voxel.
        depths: Mamba layers of each stage.
        feat_size: channels of each stage. (Upstream's last layer reads 48 whatever this says; here as many as the first stage
            has, which is the same wherever upstream's works.)
        hidden_size: channels between encoder and decoder.
        img_size: depth, height and width of the patches that it is meant for (of a sliding window); it takes any
            size that :meth:`check_size` takes.
    """

    in_chans: int = 1
    num_classes: int = 13
    depths: tuple[int, ...] = (2, 2, 2, 2)
    feat_size: tuple[int, ...] = (48, 96, 192, 384)
    hidden_size: int = 768
    img_size: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        sides = (self.img_size,) * 3 if isinstance(self.img_size, int) else tuple(self.img_size)
        object.__setattr__(self, "img_size", sides)
        for name in ("depths", "feat_size"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != len(SLICES) or not all(isinstance(n, int) and n > 0 for n in value):
                raise ModelError(f"{name} is {value}; {len(SLICES)} positive whole numbers, one a stage, are needed")
        check_options(self)
        check_size(self.img_size)


def check_size(size: Sequence[int]) -> None:
    """Refuse sizes of volumes whose stages cannot be divided as the walks need it.

    Args:
        size: depth, height and width in voxels; extents that are symbolic (in a trace) are not checked.

    Raises:
        ModelError: not three multiples of 16 whose sixteenths have a product that is a multiple of 8. These are all that fit:
            (D/2)(H/2)(W/2) must be a multiple of 64, (D/4)(H/4)(W/4) of 32, and so on to (D/16)(H/16)(W/16) of 8.
    """
    if not all(isinstance(side, int) for side in size):
        return
    if len(size) != 3 or any(side < 1 or side % STRIDE for side in size):
        raise ModelError(f"a volume of {'x'.join(map(str, size))} voxels: three multiples of {STRIDE} are needed")
    if math.prod(side // STRIDE for side in size) % SLICES[-1]:
        raise ModelError(
            f"a volume of {'x'.join(map(str, size))} voxels: the product of its sides is needed to be a multiple of "
            f"{SLICES[-1]} x {STRIDE}^3, as of 32x32x32"
        )


class SegMambaLayer(nn.Module):
    """A mixer over the voxels of a map, with a norm before it and a residual around it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = TriOrientedMixer(dim)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, C, D, H, W) and an order (3, D H W) of its voxels -> (B, C, D, H, W)."""
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.mamba(self.norm(tokens), order).transpose(1, 2).reshape(x.shape)


class SegMambaEncoder(nn.Module):
    """Four stages, each of half the resolution of the one before; the first has half that of the volume."""

    def __init__(self, config: SegMambaConfig) -> None:
        super().__init__()
        dims = config.feat_size
        # The empty modules stand where upstream has norms without parameters: the convolutions' keys count them.
        first = nn.Sequential(nn.Conv3d(config.in_chans, dims[0], 7, stride=2, padding=3))
        halvings = (nn.Sequential(nn.Identity(), nn.Conv3d(a, b, 2, stride=2)) for a, b in pairwise(dims))
        self.downsample_layers = nn.ModuleList([first, *halvings])
        self.stages = nn.ModuleList(
            nn.ModuleList(SegMambaLayer(dim) for _ in range(depth))
            for dim, depth in zip(dims, config.depths, strict=True)
        )
        self.gscs = nn.ModuleList(GatedSpatialConvolution(dim) for dim in dims)
        self.mlps = nn.ModuleList(SkipMlp(dim) for dim in dims)

    def forward(self, x: Tensor, grad_checkpointing: bool = False) -> list[Tensor]:
        """(B, in_chans, D, H, W) -> maps of the stages, of strides 2, 4, 8 and 16, as the decoder takes them."""
        maps = []
        stages = zip(self.downsample_layers, self.gscs, self.stages, self.mlps, SLICES, strict=True)
        for i, (down, gsc, layers, mlp, slices) in enumerate(stages):
            x = gsc(down(instance_norm(x) if i else x))
            size: Size = x.shape[2:]
            order = scan_order(f"slices{slices}", tuple(size), x.device)
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = checkpoint(layer, x, order, use_reentrant=False) if grad_checkpointing else layer(x, order)
            maps.append(mlp(instance_norm(x)))
        return maps


class SegMamba(Model):
    """SegMamba. Keys of the state are those of the official class (ge-xing/SegMamba).

    Attributes:
        volume: names the modalities of BraTS 2023 where there are four of them, else numbers them; each is normalised by a
            z-score over its voxels that are not 0, as is the custom for BraTS. Set another where the data differ.
        grad_checkpointing: recompute each Mamba layer in the backward pass.
    """

    task = "segmentation"
    classifier_path = "out.conv.conv"

    def __init__(self, config: SegMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.model_name = "segmamba"
        self.num_classes = config.num_classes
        self.volume = VolumeCard(modalities=_modalities(config.in_chans), patch=config.img_size)
        self.grad_checkpointing = False
        first, second, third, fourth = config.feat_size
        self.vit = SegMambaEncoder(config)
        self.encoder1 = EncoderBlock(config.in_chans, first)
        self.encoder2 = EncoderBlock(first, second)
        self.encoder3 = EncoderBlock(second, third)
        self.encoder4 = EncoderBlock(third, fourth)
        self.encoder5 = EncoderBlock(fourth, config.hidden_size)
        self.decoder5 = UpBlock(config.hidden_size, fourth)
        self.decoder4 = UpBlock(fourth, third)
        self.decoder3 = UpBlock(third, second)
        self.decoder2 = UpBlock(second, first)
        self.decoder1 = EncoderBlock(first, first)
        self.out = Convolution(Convolution(nn.Conv3d(first, config.num_classes, 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, D, H, W) -> (B, feat_size[0], D, H, W), what the last layer reads.

        Raises:
            ModelError: a size that :func:`check_size` refuses.
        """
        check_size(x.shape[2:])
        maps = self.vit(x, self.grad_checkpointing and self.training)
        skips = [self.encoder1(x)]
        for encoder, skip in zip((self.encoder2, self.encoder3, self.encoder4), maps, strict=False):
            skips.append(encoder(skip))
        y = self.encoder5(maps[-1])
        for decoder in (self.decoder5, self.decoder4, self.decoder3, self.decoder2):
            y = decoder(y, skips.pop())
        return self.decoder1(y)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, D, H, W) normalised volumes -> logits (B, num_classes, D, H, W)."""
        return self.out(self.forward_features(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each Mamba layer in the backward pass."""
        self.grad_checkpointing = enable


def _modalities(count: int) -> tuple[str, ...]:
    """Names for the channels of the input."""
    if count == len(BRATS_MODALITIES):
        return BRATS_MODALITIES
    return ("image",) if count == 1 else tuple(f"image{i + 1}" for i in range(count))


# Keywords of upstream's constructor -> ours, and those that it takes and never reads.
_NAMES = {
    "in_chans": "in_chans",
    "out_chans": "num_classes",
    "depths": "depths",
    "feat_size": "feat_size",
    "hidden_size": "hidden_size",
}
_INERT = ("cls", "drop_path_rate", "layer_scale_init_value", "norm_name", "conv_block", "res_block", "spatial_dims")


def config_from_upstream(config: Mapping[str, Any]) -> SegMambaConfig:
    """The official constructor's keywords (commit cff3597), as ours.

    Raises:
        ModelError: a keyword that the official class does not have, or a class other than ``SegMamba``.
    """
    if config.get("cls") not in (None, "SegMamba"):
        raise ModelError(f"segmamba: upstream's class {config['cls']!r} is not supported")
    return SegMambaConfig(**pick("segmamba", config, _NAMES, _INERT))


def recognise(keys: Collection[str]) -> bool:
    """Whether a checkpoint's keys are SegMamba's."""
    return any(key.endswith("stages.0.0.mamba.A_s_log") for key in keys)


register_family(
    Family(
        name="segmamba",
        title="SegMamba",
        paper="Xing et al., arXiv:2401.13560",
        config=SegMambaConfig,
        build=SegMamba,
        from_upstream=config_from_upstream,
        recognise=recognise,
        task="segmentation",
    )
)
register_model(
    ModelEntry(
        name="segmamba",
        family="segmamba",
        # As upstream trains it on BraTS 2023: four modalities, the background and three parts of a tumour.
        config=SegMambaConfig(in_chans=4, num_classes=4),
        preprocessing=None,
        params=67_416_196,
        aliases=("SegMamba",),
        source="ge-xing/SegMamba, BraTS 2023",
    )
)
