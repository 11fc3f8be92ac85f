"""The channel attention that EfficientVMamba puts on a block's branches and LocalMamba on a scan's directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 8


class BiAttention(nn.Module):
    """Scale each channel by a number between 0 and 1 that is computed from the mean of all positions.

    (Squeeze and excitation, arXiv:1709.01507, over normalised channels-last features; EfficientVMamba, arXiv:2403.09977,
    section 3.3; LocalMamba, arXiv:2403.09338, section 4.2.) The mean is of the normed features, the product with those as
    they came.

    Parameters (upstream's names): ``norm`` (C), ``global_reduce`` (C // 8, C), ``channel_select`` (C, C // 8), with biases.

    Args:
        dim: C, at least 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.global_reduce = nn.Linear(dim, dim // REDUCTION)
        self.channel_select = nn.Linear(dim // REDUCTION, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) map or tokens -> the same, gated."""
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, ..., C) with one axis of positions or more -> the factors (B, 1, ..., 1, C)."""
        mean = self.norm(x).mean(list(range(1, x.dim() - 1)), keepdim=True)
        return torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(mean))))
