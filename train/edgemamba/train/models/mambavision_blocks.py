"""The layers of MambaVision: convolutions, a mixer that scans half of its channels, and attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import DropPath, Mlp, at_least_float32, initial_a_log
from edgemamba.train.selective_scan import selective_scan

EPS = 1e-5
# Of the stem's norms alone.
STEM_EPS = 1e-4


class Stem(nn.Module):
    """Two convolutions of stride 2, each with a batch norm and a ReLU: (B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_chans: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, hidden, 3, 2, 1, bias=False),
            nn.BatchNorm2d(hidden, eps=STEM_EPS),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim, eps=STEM_EPS),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_down(x)


class Halve(nn.Module):
    """Half the height and width, rounded up, and twice the channels, by a convolution: (B, C, H, W) -> (B, 2C, ...)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(x)


class ConvBlock(nn.Module):
    """Two convolutions with a residual; the GELU here is tanh's approximation, unlike the MLPs'."""

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(dim, eps=EPS)
        self.act = nn.GELU(approximate="tanh")
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(dim, eps=EPS)
        self.gamma = scale_parameter(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        if self.gamma is not None:
            y = y * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y)


class MambaVisionMixer(nn.Module):
    """Half of the channels through a scan, the other half through a convolution alone, side by side (arXiv:2407.08083, section 3.2).

    The convolutions look both ways. ``dt_proj``'s bias enters twice, as upstream's does: its projection adds it, and so does the
    scan. Here the projection leaves it out and the scan is given it doubled.
    """

    def __init__(self, dim: int, d_state: int = 8, d_conv: int = 3) -> None:
        super().__init__()
        half, rank = dim // 2, math.ceil(dim / 16)
        self.inner, self.dt_rank, self.d_state, self.d_conv = half, rank, d_state, d_conv
        self.A_log = nn.Parameter(initial_a_log(half, states=d_state))
        self.D = nn.Parameter(torch.ones(half))
        self.in_proj = nn.Linear(dim, 2 * half, bias=False)
        self.x_proj = nn.Linear(half, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, half)
        self.out_proj = nn.Linear(2 * half, dim, bias=False)
        self.conv1d_x = nn.Conv1d(half, half, d_conv, padding=d_conv // 2, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, d_conv, padding=d_conv // 2, groups=half, bias=False)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, L, C) tokens and an order (1, L) of them -> (B, L, C)."""
        to_value, to_side = self.in_proj.weight.split(self.inner)
        value = self._convolve(F.linear(x, to_value), self.conv1d_x)
        side = self._convolve(F.linear(x, to_side), self.conv1d_z)
        dt, B, C = self.x_proj(value).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            value.unsqueeze(2),
            F.linear(dt, self.dt_proj.weight).unsqueeze(2),
            -torch.exp(at_least_float32(self.A_log)).unsqueeze(0),
            B.unsqueeze(2),
            C.unsqueeze(2),
            at_least_float32(self.D).unsqueeze(0),
            2 * at_least_float32(self.dt_proj.bias).unsqueeze(0),
            order,
        )
        return self.out_proj(torch.cat([y, side], dim=-1))

    def _convolve(self, tokens: Tensor, conv: nn.Conv1d) -> Tensor:
        """(B, L, E) -> SiLU of the depthwise convolution, (B, L, E): a 2-D one over a map of one row, as Vim's mixer has it."""
        row = tokens.unsqueeze(1).permute(0, 3, 1, 2)
        y = F.conv2d(row, conv.weight.unsqueeze(2), padding=(0, self.d_conv // 2), groups=self.inner)
        return F.silu(y.permute(0, 2, 3, 1).squeeze(1))


class Attention(nn.Module):
    """Softmax attention among the tokens of a window; ``qk_norm`` norms queries and keys (no published model does)."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, qk_norm: bool, attn_drop: float, drop: float) -> None:
        super().__init__()
        self.heads, self.attn_drop = heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // heads, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C); attention has no use for the order that the mixers scan in."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind()
        dropout = self.attn_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=dropout)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(batch, length, dim)))


class Block(nn.Module):
    """A mixer and an MLP, each with a norm before it and a residual round it."""

    def __init__(
        self, dim: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop)
        self.gamma_1, self.gamma_2 = scale_parameter(dim, layer_scale), scale_parameter(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, L, C) and an order (1, L) -> (B, L, C)."""
        x = x + self.drop_path(_scaled(self.mixer(self.norm1(x), order), self.gamma_1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma_2))


def scale_parameter(dim: int, value: float | None) -> nn.Parameter | None:
    """A learned scale of each channel, starting at ``value``; None for none."""
    return None if value is None else nn.Parameter(torch.full((dim,), float(value)))


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
