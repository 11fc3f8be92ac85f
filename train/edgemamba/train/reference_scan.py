"""The selective scan in plain, differentiable PyTorch: the operator's contract as a loop over its steps.

Slow (one small launch for each step) and readable: what the kernels are tested against, what benchmarks compare with, and
what to read first. Use :func:`edgemamba.train.selective_scan.selective_scan` for everything else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.runtime.operator import SOFTPLUS_THRESHOLD
from edgemamba.train.scan_contract import check_arguments


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool = True,
) -> Tensor:
    """Selective scan (Mamba, arXiv:2312.00752, section 3.2) over any order of positions; float32 state, or float64.

    Arguments, result and errors are those of :func:`edgemamba.train.selective_scan.selective_scan`; any device, and
    differentiable to any degree by PyTorch's own autograd.
    """
    check_arguments(u, delta, A, B, C, D, delta_bias, order)
    _check_order(order, positions=u.shape[1])
    batch, positions, _, channels = u.shape
    directions, steps = order.shape
    state_dtype = torch.promote_types(u.dtype, torch.float32)

    # Everything in the order of the steps: (B, S, G, ...). Row s of direction g is position order[g, s].
    index = order.long().t()
    direction = torch.arange(directions, device=order.device)
    u_steps = u.to(state_dtype).expand(-1, -1, directions, -1)[:, index, direction]
    dt = delta.to(state_dtype)[:, index, direction] + delta_bias
    if delta_softplus:
        dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD)
    B_steps = B.to(state_dtype)[:, index, direction]
    C_steps = C.to(state_dtype)[:, index, direction]

    state = u_steps.new_zeros(batch, directions, channels, A.shape[-1])
    rows = []
    for s in range(steps):
        decay = torch.exp(dt[:, s, ..., None] * A)
        state = decay * state + (dt[:, s] * u_steps[:, s])[..., None] * B_steps[:, s, :, None, :]
        rows.append((state * C_steps[:, s, :, None, :]).sum(-1) + D * u_steps[:, s])
    y = u_steps.new_zeros(batch, positions, channels)
    for g in range(directions):
        if steps:
            y = y.index_add(1, index[:, g], torch.stack([row[:, g] for row in rows], dim=1))
    return y.to(u.dtype)


def _check_order(order: Tensor, positions: int) -> None:
    """Refuse an order that leaves the map or visits a position twice in one direction."""
    if order.numel() == 0:
        return
    low, high = int(order.min()), int(order.max())
    if low < 0 or high >= positions:
        raise ScanArgumentError(f"order: {low if low < 0 else high} is not a position of a map of {positions}")
    for g, row in enumerate(order):
        if len(row.unique()) != len(row):
            raise ScanArgumentError(f"order: direction {g} visits a position twice")
