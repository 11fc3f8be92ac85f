"""SegMamba's mixer: three Mamba branches that read a volume's voxels forwards, backwards, and in turn through its slices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import at_least_float32, initial_a_log, initial_dt_bias, initial_dt_weight
from edgemamba.train.selective_scan import selective_scan

# Of the branches, in upstream's parameter names: conv1d, conv1d_b, conv1d_s; A_log, A_b_log, A_s_log; D, D_b, D_s.
BRANCHES = ("", "_b", "_s")


class TriOrientedMixer(nn.Module):
    """The mixer of a SegMamba layer (arXiv:2401.13560, section 2.2), with the parameters and names of the official code.

    Upstream permutes its tokens for each branch, scans, and permutes back. Here only the causal convolutions see permuted
    tokens; every branch's values lie at their voxels, all branches go through one scan whose rows of ``order`` are their
    walks, and the gate, which is permuted with the values, is applied once to their sum.

    Parameters, for each suffix s of "", "_b", "_s": ``conv1d{s}`` (E, 1, d_conv), ``x_proj{s}.weight`` (R + 2N, E),
    ``dt_proj{s}`` (E, R), ``A{s}_log`` (E, N), ``D{s}`` (E); shared: ``in_proj`` (2E, C), ``out_proj`` (C, E).

    Args:
        dim: C, channels of the tokens.
        d_state: N, states for each inner channel.
        d_conv: taps of the convolutions.
        expand: E / C, inner width.
        dt_rank: R; None for C / 16, rounded up.
        conv_bias: of the convolutions.
        bias: of ``in_proj`` and ``out_proj``.
    """

    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    conv1d_s: nn.Conv1d
    dt_proj: nn.Linear

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        *,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.d_inner, self.d_state, self.d_conv = inner, d_state, d_conv
        self.dt_rank = rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        for branch in BRANCHES:
            setattr(self, f"conv1d{branch}", nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias))
            setattr(self, f"x_proj{branch}", nn.Linear(inner, rank + 2 * d_state, bias=False))
            setattr(self, f"dt_proj{branch}", nn.Linear(rank, inner))
            setattr(self, f"A{branch}_log", nn.Parameter(initial_a_log(inner, states=d_state)))
            setattr(self, f"D{branch}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        with torch.no_grad():  # upstream gives this start to the first branch alone
            self.dt_proj.weight.copy_(initial_dt_weight(inner, rank))
            self.dt_proj.bias.copy_(initial_dt_bias(inner))

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, L, C) tokens and an order (3, L) int32 of them, whose first two rows are raster and reverse -> (B, L, C)."""
        value, gate = self.in_proj(x).split(self.d_inner, dim=-1)
        values = torch.stack(self._convolve(value, order[2]), dim=2)
        rows = [projection(values[:, :, g]) for g, projection in enumerate(self._linears("x_proj"))]
        dt, B, C = torch.stack(rows, dim=2).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # Without dt_proj's biases, which are the scan's: (B, L, 3, R) x (3, E, R) -> (B, L, 3, E).
        weights = torch.stack([projection.weight for projection in self._linears("dt_proj")])
        biases = torch.stack([projection.bias for projection in self._linears("dt_proj")])
        delta = torch.einsum("blgr,ger->blge", dt, weights)
        y = selective_scan(
            values,
            delta,
            -torch.exp(at_least_float32(torch.stack([getattr(self, f"A{branch}_log") for branch in BRANCHES]))),
            B,
            C,
            at_least_float32(torch.stack([getattr(self, f"D{branch}") for branch in BRANCHES])),
            at_least_float32(biases),
            order,
        )
        return self.out_proj(y * F.silu(gate))

    def _linears(self, name: str) -> list[nn.Linear]:
        return [getattr(self, f"{name}{branch}") for branch in BRANCHES]

    def _convolve(self, value: Tensor, across: Tensor) -> list[Tensor]:
        """(B, L, E) -> SiLU of each branch's causal convolution along its walk, back at the voxels: three (B, L, E).

        Args:
            value: the tokens in raster order.
            across: (L) the third branch's walk.
        """
        walk = across.long()
        back = torch.argsort(walk)
        before = self.d_conv - 1
        forward, backward, slices = self.conv1d, self.conv1d_b, self.conv1d_s
        channels_first = value.transpose(1, 2)
        convolved = [
            F.conv1d(F.pad(channels_first, (before, 0)), forward.weight, forward.bias, groups=self.d_inner),
            # Causal over flipped tokens is anti-causal over tokens as they lie.
            F.conv1d(F.pad(channels_first, (0, before)), backward.weight.flip(2), backward.bias, groups=self.d_inner),
            F.conv1d(
                F.pad(channels_first.index_select(2, walk), (before, 0)),
                slices.weight,
                slices.bias,
                groups=self.d_inner,
            ).index_select(2, back),
        ]
        return [F.silu(y).transpose(1, 2) for y in convolved]
