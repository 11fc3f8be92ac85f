"""ES2D: SS2D at a quarter of the cost, EfficientVMamba's (Pei et al., arXiv:2403.09977, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemamba.train.models.ss2d import DIRECTIONS, SS2D

STEP = 2


class ES2D(SS2D):
    """Four scans of a quarter of the positions each: every second row and column (order ``atrous2``).

    A position is on the walk of one direction, so step size and projections are computed for that one alone; :class:`SS2D`,
    whose parameters these are, computes them for all four. Odd sides are padded with zeros.

    Args:
        dim, d_state, expand: as for :class:`SS2D`.
    """

    def __init__(self, dim: int, d_state: int = 16, expand: float = 2) -> None:
        super().__init__(dim, d_state, expand, multiple=STEP)

    def _scan_map(self, u: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, E) with even sides -> the same."""
        batch, height, width, inner = u.shape
        rows, columns = height // STEP, width // STEP
        # In each square of 2 x 2 positions, that of row r and column c is direction 2c + r's.
        squares = u.reshape(batch, rows, STEP, columns, STEP, inner)
        own = squares.permute(4, 2, 0, 1, 3, 5).reshape(DIRECTIONS, batch * rows * columns, inner)
        parts = torch.bmm(own, self.x_proj_weight.transpose(1, 2))
        dt, B, C = parts.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        delta = torch.bmm(dt, self.dt_projs_weight.transpose(1, 2))

        def on_map(values: Tensor) -> Tensor:
            """(4, B * h * w, n), one for each position -> (B, H * W, 4, n); no direction reads those of another."""
            squares = values.reshape(STEP, STEP, batch, rows, columns, 1, -1).permute(2, 3, 1, 4, 0, 5, 6)
            copies = squares.expand(-1, -1, -1, -1, -1, DIRECTIONS, -1)
            return copies.reshape(batch, height * width, DIRECTIONS, -1)

        values = u.reshape(batch, height * width, inner)
        return self._selective_scan(values, on_map(delta), on_map(B), on_map(C), order).reshape(u.shape)
