"""SS2D: the scan of a picture in several directions at once, as VMamba, MedMamba and EfficientVMamba have it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import at_least_float32, initial_a_log, initial_dt_bias, initial_dt_weight
from edgemamba.train.models.padding import crop_map, pad_map
from edgemamba.train.selective_scan import selective_scan

DIRECTIONS = 4

Gate = Literal["silu", "linear", "none"]


class SS2D(nn.Module):
    """Selective scan over a map in four directions (VMamba, arXiv:2401.10166, section 4).

    Upstream makes four sequences of the map, projects each and adds the four results up in the map's order. The projections
    look at one position at a time, so all four are done here on the map itself, in one product; which direction reads which
    position when is the business of ``order``.

    Parameters (upstream's names; the leading axis of the stacked ones is the direction): ``in_proj.weight`` (2E, C), or
    (E, C) without a gate, ``conv2d`` (E, 1, 3, 3), ``x_proj_weight`` (4, R + 2N, E), ``dt_projs_weight`` (4, E, R),
    ``dt_projs_bias`` (4, E), ``A_logs`` (4E, N), ``Ds`` (4E), ``out_norm`` (E), ``out_proj.weight`` (C, E).

    Args:
        dim: C, channels of the map.
        d_state: N, states for each inner channel.
        expand: E / C, inner width.
        dropout: of the result.
        conv_bias: whether the depthwise convolution before the scan has a bias.
        dt_rank: R, of the step size's projection; None for C / 16, rounded up.
        gate: what the normed result is multiplied by: a second projection of the input through SiLU, the same as it is
            (``linear``), or nothing.
        out_act: put the normed result through GELU, before the gate.
        multiple: zeros are put below the map and on its right, after the convolution, until its sides are multiples of this,
            and the order is of that larger map. The scans take their steps on the zeros too (EfficientVMamba,
            arXiv:2403.09977, section 3.2: two, so that every second row and column can be walked apart).
        directions: of the scans, for a subclass that walks others than four (LocalMamba).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: float = 2,
        dropout: float = 0.0,
        *,
        conv_bias: bool = True,
        dt_rank: int | None = None,
        gate: Gate = "silu",
        out_act: bool = False,
        multiple: int = 1,
        directions: int = DIRECTIONS,
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.d_inner, self.d_state, self.multiple = inner, d_state, multiple
        self.dt_rank = rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, inner if gate == "none" else 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        bound = inner**-0.5  # nn.Linear's
        self.x_proj_weight = nn.Parameter(torch.empty(directions, rank + 2 * d_state, inner).uniform_(-bound, bound))
        self.dt_projs_weight = nn.Parameter(initial_dt_weight(directions, inner, rank))
        self.dt_projs_bias = nn.Parameter(initial_dt_bias(directions, inner))
        self.A_logs = nn.Parameter(initial_a_log(directions * inner, states=d_state))
        self.Ds = nn.Parameter(torch.ones(directions * inner))
        self.out_norm = nn.LayerNorm(inner, eps=1e-5)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.gate_act = nn.SiLU() if gate == "silu" else nn.Identity()
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) and an order (4, S) of its positions, or of those of the larger map -> (B, H, W, C)."""
        _, height, width, _ = x.shape
        to_value, *to_gate = self.in_proj.weight.split(self.d_inner)
        value = self.conv2d(F.linear(x, to_value).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self._scan_map(pad_map(F.silu(value), self.multiple), order)
        y = self.out_act(self.out_norm(crop_map(y, height, width)))
        for weight in to_gate:  # at most one, and not before it is needed: it is as large as the value
            y = y * self.gate_act(F.linear(x, weight))
        return self.dropout(self.out_proj(y))

    def _scan_map(self, u: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, E) -> the sum of the four directions' scans, (B, H, W, E)."""
        batch, height, width, inner = u.shape
        return self._scan(u.reshape(batch, height * width, inner), order).reshape(batch, height, width, inner)

    def _scan(self, u: Tensor, order: Tensor) -> Tensor:
        """(B, L, E) -> the sum of the four directions' scans, (B, L, E)."""
        batch, length, inner = u.shape
        parts = (self.dt_rank, self.d_state, self.d_state)
        # All directions' rows of one kind together, so that each part is what the scan reads: (B, L, 4, N).
        to_parts = torch.cat([rows.flatten(0, 1) for rows in self.x_proj_weight.split(parts, dim=1)])
        dt, B, C = F.linear(u, to_parts).split([DIRECTIONS * part for part in parts], dim=-1)
        delta = F.linear(dt, torch.block_diag(*self.dt_projs_weight.unbind()))
        return self._selective_scan(
            u,
            delta.view(batch, length, DIRECTIONS, inner),
            B.reshape(batch, length, DIRECTIONS, self.d_state),
            C.reshape(batch, length, DIRECTIONS, self.d_state),
            order,
        )

    def _selective_scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, order: Tensor) -> Tensor:
        """(B, L, E) values, (B, L, 4, E) step sizes and (B, L, 4, N) projections -> (B, L, E)."""
        return selective_scan(
            u.unsqueeze(2),
            delta,
            -torch.exp(at_least_float32(self.A_logs)).view(DIRECTIONS, self.d_inner, self.d_state),
            B,
            C,
            at_least_float32(self.Ds).view(DIRECTIONS, self.d_inner),
            at_least_float32(self.dt_projs_bias),
            order,
        )
