"""Heads that make a class for every pixel from a backbone's maps: an FPN's, UperNet's, and a pyramid for maps of one size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import LayerNorm2d

HeadName = Literal["fpn", "upernet"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

# Sides of the grids over which UperNet pools its coarsest map.
_POOLED = (1, 2, 3, 6)
# Group norms, because batches of large pictures are too small for batch norms: at most so many groups of at least so many
# channels each (of fewer, nothing would be left of a map of one position).
_GROUPS, LEAST_CHANNELS = 32, 8


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear with half-pixel centres, as ONNX's and TensorRT's Resize do it."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ConvNorm(nn.Sequential):
    """A convolution without bias, a group norm and a ReLU."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int) -> None:
        groups = next(
            groups for groups in range(min(_GROUPS, out_chans // LEAST_CHANNELS), 0, -1) if out_chans % groups == 0
        )
        super().__init__(
            nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2, bias=False),
            nn.GroupNorm(groups, out_chans),
            nn.ReLU(),
        )


class PyramidPooling(nn.Module):
    """What is seen in a map at large (PSPNet, arXiv:1612.01105): means over coarse grids, put back beside the map."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ConvNorm(in_chans, dim, 1) for _ in _POOLED)
        self.fuse = ConvNorm(in_chans + len(_POOLED) * dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, h, w) -> (B, dim, h, w)."""
        size = x.shape[2:]
        pooled = [resize(level(_mean_grid(x, side)), size) for level, side in zip(self.levels, _POOLED, strict=True)]
        return self.fuse(torch.cat([x, *pooled], dim=1))


def _mean_grid(x: Tensor, side: int) -> Tensor:
    """``F.adaptive_avg_pool2d(x, side)`` as two matrix products, which every engine has for every size of map."""
    rows, columns = (_bins(extent, side, x) for extent in x.shape[2:])
    return rows @ x @ columns.transpose(0, 1)


def _bins(extent: int, side: int, like: Tensor) -> Tensor:
    """(side, extent): row i is the mean of positions floor(i extent / side) to ceil((i + 1) extent / side)."""
    position = torch.arange(extent, device=like.device)
    i = torch.arange(side, device=like.device)[:, None]
    first, end = i * extent // side, ((i + 1) * extent + side - 1) // side
    inside = ((position >= first) & (position < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class SegmentationHead(nn.Module):
    """Lateral 1 x 1 convolutions to one width and a way down from coarse to fine, as in an FPN (arXiv:1612.03144).

    Args:
        channels: of the maps, from the finest to the coarsest.
        num_classes: outputs for each position.
        dim: channels within the head.

    ``classifier`` is the last layer; its input has the size of the finest map.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(count) for count in channels)
        self.laterals = nn.ModuleList(ConvNorm(count, dim, 1) for count in channels[:-1])
        self.top = self.make_top(channels[-1], dim)
        self.smooth = nn.ModuleList(ConvNorm(dim, dim, 3) for _ in channels)
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    def make_top(self, in_chans: int, dim: int) -> nn.Module:
        """What the coarsest map goes through: (B, in_chans, h, w) -> (B, dim, h, w)."""
        return ConvNorm(in_chans, dim, 1)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, dim, h, w), all of the finest one's size -> one such map."""
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), from the finest to the coarsest -> logits (B, num_classes, h_0, w_0)."""
        normed = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        lateral = [layer(x) for layer, x in zip(self.laterals, normed, strict=False)]
        down = accumulate(
            reversed(lateral), lambda coarse, fine: fine + resize(coarse, fine.shape[2:]), initial=self.top(normed[-1])
        )
        smooth = [layer(x) for layer, x in zip(self.smooth, reversed(list(down)), strict=True)]
        return self.classifier(self.fuse([resize(x, smooth[0].shape[2:]) for x in smooth]))


class FpnHead(SegmentationHead):
    """The maps of an FPN, added (Panoptic FPN, arXiv:1901.02446, with one convolution a level instead of one a doubling)."""

    def fuse(self, maps: list[Tensor]) -> Tensor:
        return torch.stack(maps).sum(dim=0)


class UperNetHead(SegmentationHead):
    """UperNet (arXiv:1807.10221): an FPN whose coarsest map goes through pyramid pooling, its maps joined by a convolution."""

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int) -> None:
        super().__init__(channels, num_classes, dim)
        self.join = ConvNorm(len(channels) * dim, dim, 3)

    def make_top(self, in_chans: int, dim: int) -> nn.Module:
        return PyramidPooling(in_chans, dim)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        return self.join(torch.cat(maps, dim=1))


class SimplePyramid(nn.Module):
    """Maps of four sizes from the last map of a backbone that has one size only (ViTDet, arXiv:2203.16527, figure 2).

    Args:
        channels: of the map.

    Attributes:
        channels: of the maps that come out, at 4, 2, 1 and half of the resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = max(channels // 2, 1), max(channels // 4, 1)
        self.channels = (quarter, half, channels, channels)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(channels, half, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, ceil_mode=True)  # a map of one row has a half too

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> maps of 4h x 4w, 2h x 2w, h x w and h/2 x w/2, rounded up."""
        return [self.up4(x), self.up2(x), x, self.down2(x)]


_KINDS: dict[str, type[SegmentationHead]] = {"fpn": FpnHead, "upernet": UperNetHead}


def make_segmentation_head(name: HeadName, channels: Sequence[int], num_classes: int, dim: int) -> SegmentationHead:
    """The head of that name."""
    return _KINDS[name](channels, num_classes, dim)
