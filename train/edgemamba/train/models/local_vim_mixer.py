"""LocalVim's mixer: Mamba branches that read the tokens in several directions, each gated, added up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.attention_gate import BiAttention
from edgemamba.train.models.layers import initial_a_log
from edgemamba.train.models.local_scan import MultiScan, Walk, scan_direction
from edgemamba.train.scan_orders import scan_order


class LocalMixer(nn.Module):
    """The mixer of a LocalVim block (arXiv:2403.09338, section 4), with the parameters and names of the official code.

    Each direction's causal convolution runs along its own steps, so here, other than in the other families, its tokens are
    laid out in the order of the steps before they are scanned.

    Parameters (upstream's names), for each direction k: ``conv1d_k`` (E, 1, 4), ``x_proj_k.weight`` (R + 2N, E), ``dt_proj_k``
    (E, R), ``A_log_k`` (E, N), ``D_k`` (E); for all: ``in_proj.weight`` (2E, C), ``out_proj.weight`` (C, E), ``attn``, and in a
    supernet ``multi_scan.weights``. Upstream makes the ``A_log_k`` of a mixer over ONE storage, so that loading a checkpoint
    into its model on the CPU leaves all of them equal to the last. Checkpoints hold K different ones, and so does this.

    Args:
        dim: C, channels of the tokens.
        directions: K.
        search: of a supernet: weigh the directions.
        d_state: N, states for each inner channel.
        d_conv: taps of the convolutions.
        expand: E / C, inner width.
    """

    def __init__(
        self, dim: int, directions: int, search: bool = False, d_state: int = 16, d_conv: int = 4, expand: int = 2
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.d_inner, self.d_state, self.d_conv = inner, d_state, d_conv
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for k in range(directions):
            self.add_module(f"conv1d_{k}", nn.Conv1d(inner, inner, d_conv, groups=inner))
            self.add_module(f"x_proj_{k}", nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False))
            self.add_module(f"dt_proj_{k}", nn.Linear(self.dt_rank, inner))
            self.register_parameter(f"A_log_{k}", nn.Parameter(initial_a_log(inner, states=d_state)))
            self.register_parameter(f"D_{k}", nn.Parameter(torch.ones(inner)))
        self.attn = BiAttention(inner)
        self.multi_scan = MultiScan(directions if search else 0)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, walks: Sequence[Walk]) -> Tensor:
        """(B, L, C) tokens and the K directions over them -> (B, L, C)."""
        to_value, to_gate = self.in_proj.weight.split(self.d_inner)
        value, gate = F.linear(x, to_value), F.silu(F.linear(x, to_gate))
        results = []
        for k, walk in enumerate(walks):
            own = gate if walk.in_place else gate.index_select(1, walk.origin)
            results.append(self.attn(self._branch(k, value, walk) * own))
        return self.out_proj(self.multi_scan(results))

    def _branch(self, k: int, value: Tensor, walk: Walk) -> Tensor:
        """Direction k: (B, L, E) -> (B, L, E), before the gates."""
        # Padding takes part: it is zero here, but not any more after the convolution.
        u = self._convolve(walk.pad(value).index_select(1, walk.read), self.get_submodule(f"conv1d_{k}"))
        y = scan_direction(
            u,
            self.get_submodule(f"x_proj_{k}")(u),
            self.get_parameter(f"dt_proj_{k}.weight"),
            self.get_parameter(f"A_log_{k}"),
            self.get_parameter(f"D_{k}"),
            self.get_parameter(f"dt_proj_{k}.bias"),
            scan_order("raster", (u.shape[1],), u.device)[0],
        )
        return y.index_select(1, walk.write)

    def _convolve(self, steps: Tensor, conv: nn.Module) -> Tensor:
        """(B, S, E) -> SiLU of the causal depthwise convolution along the steps, (B, S, E).

        As a 2-D convolution over a map of one row, for the reasons given in :mod:`edgemamba.train.models.vim_mixer`.
        """
        assert isinstance(conv, nn.Conv1d)
        row = steps.unsqueeze(1).permute(0, 3, 1, 2)
        row = F.conv2d(F.pad(row, (self.d_conv - 1, 0)), conv.weight.unsqueeze(2), conv.bias, groups=self.d_inner)
        return F.silu(row.permute(0, 2, 3, 1).squeeze(1))
