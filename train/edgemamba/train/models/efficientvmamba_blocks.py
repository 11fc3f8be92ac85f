"""EfficientVMamba's blocks: a scan beside a convolution where maps are large, convolutions alone where they are small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.train.models.attention_gate import BiAttention
from edgemamba.train.models.layers import DropPath, Mlp, Permute
from edgemamba.train.models.ss2d import SS2D

# Of the inverted residuals: channels inside for each outside, and of those for each that their gates are computed from.
EXPANSION, SQUEEZE = 4, 8


class EVSSBlock(nn.Module):
    """A scan and a convolution of the same normed map, each gated by channels, added (arXiv:2403.09977, section 3.3).

    Parameters (upstream's names): ``norm``, ``op``, ``conv_branch.0`` to ``.3``, ``se`` (one gate with the
    same weights for both branches), and ``norm2`` and ``mlp`` where there is an MLP.

    Args:
        dim: C, channels of the map.
        op: the scan.
        mlp_ratio: hidden channels of the MLP for each of the map's; 0 for none.
        dropout: in the MLP.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        op: SS2D,
        mlp_ratio: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.op = op
        self.conv_branch = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )
        self.se = BiAttention(dim)
        self.drop_path = DropPath(drop_path)
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim, eps=1e-5)
            self.mlp: nn.Module | None = Mlp(dim, int(dim * mlp_ratio), dropout)
        else:
            self.mlp = None

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) and an order (4, S) of its positions, or of the enlarged map's -> (B, H, W, C)."""
        normed = self.norm(x)
        local = self.conv_branch(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.se(self.op(normed, order)) + self.se(local))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a number between 0 and 1 that is computed from all channels' means (arXiv:1709.01507)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        reduced = max(1, dim // SQUEEZE)
        self.conv_reduce = nn.Conv2d(dim, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(F.relu(self.conv_reduce(means))))


class InvertedResidual(nn.Module):
    """MobileNet's block: widen, convolve by channel, gate, narrow, add (arXiv:1801.04381, section 3.3; arXiv:1905.02244)."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        inner = EXPANSION * dim
        self.conv_pw = nn.Sequential(nn.Conv2d(dim, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.conv_dw = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
        )
        self.se = SqueezeExcite(inner)
        self.conv_pw2 = nn.Sequential(nn.Conv2d(inner, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x + self.drop_path(self.conv_pw2(self.se(self.conv_dw(self.conv_pw(x)))))


class ConvStage(nn.Sequential):
    """Inverted residuals on maps of one size, then a downsampling (Identity in a last stage).

    A flat Sequential, as upstream's: the places of its two permutations are part of the other layers' keys.
    """

    def __init__(self, blocks: Sequence[InvertedResidual], downsample: nn.Module) -> None:
        super().__init__(Permute(0, 3, 1, 2), *blocks, Permute(0, 2, 3, 1), downsample)

    def forward(self, x: Tensor, grad_checkpointing: bool = False, maps: list[Tensor] | None = None) -> Tensor:
        """(B, H, W, C) -> what the downsampling makes of the blocks' result, which is appended to ``maps`` (B, C, H, W)."""
        to_channels_first, *blocks, to_channels_last, downsample = self
        x = to_channels_first(x)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if grad_checkpointing else block(x)
        if maps is not None:
            maps.append(x)
        return downsample(to_channels_last(x))
