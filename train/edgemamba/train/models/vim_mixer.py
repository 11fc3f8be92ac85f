"""Vim's mixer: a Mamba branch that reads the tokens forwards, one that reads them backwards, and a gate (bimamba v2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import at_least_float32, initial_a_log, initial_dt_bias, initial_dt_weight
from edgemamba.train.selective_scan import selective_scan


class BidirectionalMixer(nn.Module):
    """The mixer of a Vim block (arXiv:2401.09417, algorithm 1), with the parameters and names of the official code.

    Nothing is ever flipped. The backward branch's causal convolution over flipped tokens is an anti-causal one over the
    tokens as they lie, its other projections look at one token at a time, and its scan is the second row of ``order``; so
    both branches go through one scan, tokens stay channels-last, and the shared gate is applied once to their sum.

    Args:
        dim: C, channels of the tokens.
        d_state: N, states for each inner channel.
        d_conv: taps of the convolution.
        expand: E / C, inner width.
        halve: divide the sum of the branches by two (``if_divide_out``; true in every published model).
        layer_scale: initial value of ``gamma``, a scale for each channel of the result; None for no such parameter.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        *,
        halve: bool = True,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.d_inner, self.d_state, self.d_conv = inner, d_state, d_conv
        self.dt_rank = math.ceil(dim / 16)
        self.halve = halve
        projected = self.dt_rank + 2 * d_state

        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, projected, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(initial_a_log(inner, states=d_state))
        self.D = nn.Parameter(torch.ones(inner))

        self.conv1d_b = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj_b = nn.Linear(inner, projected, bias=False)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner)
        self.A_b_log = nn.Parameter(initial_a_log(inner, states=d_state))
        self.D_b = nn.Parameter(torch.ones(inner))

        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))

        with torch.no_grad():
            self.dt_proj.weight.copy_(initial_dt_weight(inner, self.dt_rank))
            self.dt_proj.bias.copy_(initial_dt_bias(inner))
            # Upstream's backward branch gets no such start: its bias is reset to zero with those of other Linears.
            self.dt_proj_b.bias.zero_()

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, L, C) tokens and an order (2, L) of them, "bidirectional" in all published models -> (B, L, C)."""
        batch, length, _ = x.shape
        to_value, to_gate = self.in_proj.weight.split(self.d_inner)
        gate = F.silu(F.linear(x, to_gate))
        u = self._convolve(F.linear(x, to_value))

        # (B, L, 2, R + 2N): each direction's step size, B and C, all functions of its own value at the same token.
        forward, backward = u.unbind(2)
        projected = torch.stack([self.x_proj(forward), self.x_proj_b(backward)], dim=2)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # Without dt_proj's bias, which is the scan's. One product with a block-diagonal matrix writes both directions'
        # rows where the scan reads them.
        to_delta = torch.block_diag(self.dt_proj.weight, self.dt_proj_b.weight)
        delta = F.linear(dt.reshape(batch, length, 2 * self.dt_rank), to_delta)

        y = selective_scan(
            u,
            delta.view(batch, length, 2, self.d_inner),
            -torch.exp(at_least_float32(torch.stack([self.A_log, self.A_b_log]))),
            B,
            C,
            at_least_float32(torch.stack([self.D, self.D_b])),
            at_least_float32(torch.stack([self.dt_proj.bias, self.dt_proj_b.bias])),
            order,
        )
        weight = self.out_proj.weight * 0.5 if self.halve else self.out_proj.weight
        out = F.linear(y * gate, weight)
        return out if self.gamma is None else out * self.gamma

    def _convolve(self, value: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, 2, E): SiLU of the causal and of the anti-causal depthwise convolution, side by side.

        One 2-D convolution of both over a map of one row, (B, 2E, 1, L) seen through channels-last strides: the form for
        which PyTorch and ONNX Runtime have vectorised depthwise kernels, and whose result is the scan's ``u`` as it lies.
        Taps of zero make a causal filter and an anti-causal one of the same extent.
        """
        batch, length, inner = value.shape
        row = torch.cat([value, value], dim=2).reshape(batch, 1, length, 2 * inner).permute(0, 3, 1, 2)
        before = self.d_conv - 1
        causal = F.pad(self.conv1d.weight, (0, before))
        anticausal = F.pad(self.conv1d_b.weight.flip(2), (before, 0))
        taps = torch.cat([causal, anticausal]).unsqueeze(2)
        y = F.conv2d(row, taps, padding=(0, before), groups=2 * inner)
        # Added apart: a convolution's own gradient of its bias takes as long as its other two together. ONNX Runtime joins them.
        bias = torch.cat([self.conv1d.bias, self.conv1d_b.bias])  # type: ignore[list-item]
        y = F.silu(y + bias.view(-1, 1, 1).to(y.dtype))  # autocast narrows the convolution, not its parameters
        return y.permute(0, 2, 3, 1).reshape(batch, length, 2, inner)
