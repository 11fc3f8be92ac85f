"""SegMamba's convolutional parts. Norms are instance norms without parameters (epsilon 1e-5), the same in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of the decoder's leaky ReLUs


def instance_norm(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> each channel of each volume with mean 0 and (biased) variance 1."""
    return F.instance_norm(x)


class GatedSpatialConvolution(nn.Module):
    """GSC (arXiv:2401.13560, section 2.2): local features in two branches before the tokens are made; a residual around.

    Despite the name the official code adds the branches where the paper's figure multiplies them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(dim, dim, 3, padding=1)
        self.proj2 = nn.Conv3d(dim, dim, 3, padding=1)
        self.proj3 = nn.Conv3d(dim, dim, 1)
        self.proj4 = nn.Conv3d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same."""
        spatial = x
        for proj in (self.proj, self.proj2):
            spatial = F.relu(instance_norm(proj(spatial)))
        pointwise = F.relu(instance_norm(self.proj3(x)))
        return F.relu(instance_norm(self.proj4(spatial + pointwise))) + x


class SkipMlp(nn.Module):
    """Two 1 x 1 x 1 convolutions with a GELU (exact) between them: ``fc1`` (2C, C), ``fc2`` (C, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(dim, 2 * dim, 1)
        self.fc2 = nn.Conv3d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Convolution(nn.Module):
    """One layer under the name ``conv``, as in the state of MONAI's blocks."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions; where the number of channels changes, a third of 1 x 1 x 1 on the way around them."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv1 = Convolution(nn.Conv3d(in_chans, out_chans, 3, padding=1, bias=False))
        self.conv2 = Convolution(nn.Conv3d(out_chans, out_chans, 3, padding=1, bias=False))
        around = Convolution(nn.Conv3d(in_chans, out_chans, 1, bias=False)) if in_chans != out_chans else None
        self.conv3 = around

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, D, H, W) -> (B, out_chans, D, H, W)."""
        y = F.leaky_relu(instance_norm(self.conv1(x)), SLOPE)
        y = instance_norm(self.conv2(y))
        around = x if self.conv3 is None else instance_norm(self.conv3(x))
        return F.leaky_relu(y + around, SLOPE)


class EncoderBlock(nn.Module):
    """A residual block under the name ``layer``."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.layer = ResidualBlock(in_chans, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class UpBlock(nn.Module):
    """Twice the resolution, beside the skip of that resolution, through a residual block."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.transp_conv = Convolution(nn.ConvTranspose3d(in_chans, out_chans, 2, stride=2, bias=False))
        self.conv_block = ResidualBlock(2 * out_chans, out_chans)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_chans, D, H, W) and (B, out_chans, 2D, 2H, 2W) -> (B, out_chans, 2D, 2H, 2W)."""
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))
