"""PlainMamba's mixer: four walks over the map whose step sizes and projections stay with the step, not with the token."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.layers import at_least_float32, initial_a_log
from edgemamba.train.models.padding import crop_map, pad_map, round_up
from edgemamba.train.scan_orders import Size, get_order, scan_order
from edgemamba.train.selective_scan import selective_scan

DIRECTIONS = 4
# Rows of ``direction_Bs``: how a walk arrived at the token it is on.
START, RIGHT, LEFT, UP, DOWN = range(5)


class Walks(NamedTuple):
    """What the mixers of a model need to know of its walks over one map; the same for all of them.

    P counts the positions of the map enlarged to sides that are multiples of what the order needs (``snake`` needs nothing).

    Attributes:
        order: (4, S) int32, as of :func:`edgemamba.train.scan_orders.scan_order`.
        steps: (P * 4) at which step each walk is at each position, positions outermost.
        arrivals: (P, 4) by which move, a row of ``direction_Bs``, each walk arrives at each position.
    """

    order: Tensor
    steps: Tensor
    arrivals: Tensor


def walks(name: str, size: Size, device: torch.device | None = None) -> Walks:
    """The walks of an order over a map ``(height, width)``, whose extents may be symbolic.

    Args:
        name: an order of four directions, or one that extends to four.

    Raises:
        ScanArgumentError: unknown, or not of four directions.
    """
    multiple = get_order(name).multiple
    height, width = (round_up(side, multiple) for side in size)
    positions = height * width
    order = scan_order(name, (height, width), device, directions=DIRECTIONS)
    index = order.long()
    counted = torch.arange(order.shape[1], device=device).expand(DIRECTIONS, -1)
    steps = torch.zeros(DIRECTIONS, positions, dtype=torch.int64, device=device).scatter(1, index, counted)
    return Walks(order, steps.t().reshape(-1), moves(order, width).gather(1, steps).t())


def moves(order: Tensor, width: int) -> Tensor:
    """By which move each walk arrives at each of its steps: (G, S) positions of a map -> (G, S) rows of ``direction_Bs``.

    The official walks only ever move to a neighbour. Other orders jump; a jump counts as a move along the axis that it goes
    farther on, and along the row where it goes equally far on both: the return of a raster scan to the next line is a move
    to the left, a step of a zigzag's diagonal one to the right or left.
    """
    row, column = torch.div(order, width, rounding_mode="floor"), order % width
    down, right = row[:, 1:] - row[:, :-1], column[:, 1:] - column[:, :-1]
    along_row = torch.where(right > 0, RIGHT, LEFT)
    along_column = torch.where(down > 0, DOWN, UP)
    moved = torch.where(right.abs() >= down.abs(), along_row, along_column)
    return F.pad(moved, (1, 0), value=START)


class PlainMambaMixer(nn.Module):
    """The mixer of a PlainMamba layer (arXiv:2403.17695), as the official code computes it.

    Three things of it differ from the paper, and the weights were trained with all three:

    - the bias of ``dt_proj`` is added twice, by the projection and by the scan; here once, doubled, by the scan;
    - a walk permutes the values alone: its step t takes its value from the t-th token on its way, but step size, B and C
      from the t-th token of the raster. Here values stay where they are, and each walk gets, at each position, the step
      size, B and C of the token whose number is that of the step at which it comes by; so one scan writes the four walks'
      results where they belong, and adds them up;
    - all four walks have the same weights. What tells them apart is ``direction_Bs``, a vector for each way of arriving at a
      token, which is added to B.

    Parameters (upstream's names): ``in_proj`` (2E, C), ``conv2d`` (E, 1, k, k), ``x_proj.weight`` (R + 2N, E), ``dt_proj``
    (E, R), ``A_log`` (E, N), ``D`` (E), ``direction_Bs`` (5, N), ``out_proj`` (C, E).

    Args:
        dim: C, channels of the map.
        d_state: N, states for each inner channel.
        expand: E / C, inner width.
        d_conv: k, side of the depthwise convolution; odd.
        dt_rank: R; None for C / 16, rounded up.
        conv_bias: of the convolution.
        bias: of ``in_proj`` and ``out_proj``.
        multiple: zeros are put below the map and on its right, after the convolution, until its sides are multiples of this,
            as its order needs them; what the scan says there is dropped.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 7,
        dt_rank: int | None = None,
        *,
        conv_bias: bool = True,
        bias: bool = True,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.d_inner, self.d_state, self.multiple = inner, d_state, multiple
        self.dt_rank = rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(initial_a_log(inner, states=d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.direction_Bs = nn.Parameter(nn.init.trunc_normal_(torch.empty(DOWN + 1, d_state), std=0.02))
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor, around: Walks) -> Tensor:
        """(B, H, W, C) and the walks over its positions -> (B, H, W, C)."""
        value, gate = self._project(x)
        value = self.conv2d(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        u = pad_map(F.silu(value), self.multiple)
        y = self._scan(u.flatten(1, 2), around).reshape(u.shape)
        return self.out_proj(crop_map(y, x.shape[1], x.shape[2]) * F.silu(gate))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> values and gates, each (B, H, W, E): two products, because halves of one would be copied."""
        weights, bias = self.in_proj.weight.split(self.d_inner), self.in_proj.bias
        biases = (None, None) if bias is None else bias.split(self.d_inner)
        return F.linear(x, weights[0], biases[0]), F.linear(x, weights[1], biases[1])

    def _scan(self, u: Tensor, around: Walks) -> Tensor:
        """(B, P, E) -> the sum of the four walks' scans, (B, P, E)."""
        batch, positions, inner = u.shape
        # Permuted as narrow rows, before the projection widens them: that copies less, and costs a small product more.
        rows = self.x_proj(u).index_select(1, around.steps).view(batch, positions, DIRECTIONS, -1)
        dt, B, C = rows.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return selective_scan(
            u.view(batch, positions, 1, inner),
            F.linear(dt, self.dt_proj.weight),
            -torch.exp(at_least_float32(self.A_log)).expand(DIRECTIONS, -1, -1),
            B + self.direction_Bs[around.arrivals],
            C,
            at_least_float32(self.D).expand(DIRECTIONS, -1),
            (2 * at_least_float32(self.dt_proj.bias)).expand(DIRECTIONS, -1),
            around.order,
        )
