"""Runs the scan's Triton kernels on tensors: workspace, launches, and the second stage of every sum.

Nothing here waits for the device or reads a tensor's contents, and what is launched depends on shapes and dtypes alone: so
a call can be captured in a CUDA graph (once its kernels are compiled: warm up first). Positions in ``order`` are therefore
not checked: one outside 0..P-1 is no step and touches no memory, as in ``kernels/cuda``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.triton_scan.arithmetic import LOG2E
from edgemamba.train.triton_scan.backward_kernel import scan_backward
from edgemamba.train.triton_scan.configuration import (
    TILE,
    BackwardConfig,
    ForwardConfig,
    backward_candidates,
    default_backward,
    default_forward,
    forward_candidates,
)
from edgemamba.train.triton_scan.forward_kernel import scan_forward, sum_directions
from edgemamba.train.triton_scan.tuning import choose

_SUM_BLOCK = 512
# Contraction of a product and a sum is meant; Triton 3.10 changes its default. The two forms differ in rounding only.
_OPTIONS = {"enable_fp_fusion": True}

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(inputs: Inputs, delta_softplus: bool, config: ForwardConfig | None = None) -> Tensor:
    """y (B, P, D) of the operator; ``inputs`` are its eight, contiguous, of float32, float16 or bfloat16."""
    u, delta, A, order = inputs[0], inputs[1], inputs[2], inputs[7]
    _check_offsets(delta, A)
    batch, positions, directions, channels = delta.shape
    y = u.new_empty(batch, positions, channels)
    if y.numel() == 0 or order.shape[1] == 0:
        return y.zero_()
    parts = y if directions == 1 else torch.empty(delta.shape, dtype=torch.float32, device=u.device)
    if order.shape[1] < positions:
        parts.zero_()
    with _device_of(u):
        decay = _decay(A)

        def scan(config: ForwardConfig) -> None:
            _scan(inputs, decay, delta_softplus, parts, None, config)

        if config is None and u.is_cuda:
            config = choose("forward", inputs, forward_candidates(channels, A.shape[2]), scan)
        scan(config or default_forward(channels, A.shape[2]))
        return _add_directions(parts, y)


def backward(
    dy: Tensor,
    inputs: Inputs,
    delta_softplus: bool,
    wanted: Sequence[bool],
    config: BackwardConfig | None = None,
) -> Gradients:
    """Gradients of ``sum(y * dy)`` in the seven floating inputs, in their dtypes; an unwanted one is empty.

    Memory besides the results: one state for TILE steps (N / TILE maps of float32 like ``delta``), the parts of dB and dC
    of each block of channels, and, where the directions share u, one float32 map for each direction.
    """
    u, delta, A, B, C, D, delta_bias, order = inputs
    _check_offsets(delta, A)
    batch, positions, directions, channels = delta.shape
    steps, n_states = order.shape[1], A.shape[2]
    if delta.numel() == 0 or steps == 0:
        empty = [x.new_zeros(x.shape if want else (0,)) for x, want in zip(inputs[:7], wanted, strict=True)]
        return tuple(empty)  # type: ignore[return-value]
    if config is None and u.is_cuda:

        def run(tried: BackwardConfig) -> None:
            backward(dy, inputs, delta_softplus, wanted, tried)

        with _device_of(u):
            config = choose("backward", inputs, backward_candidates(channels, n_states), run)
    config = config or default_backward(channels, n_states)
    blocks = triton.cdiv(channels, config.block)
    # What a partial order leaves out has no gradient.
    allocate = torch.empty if steps == positions else torch.zeros

    def workspace(*shape: int, of: Any = torch.empty, dtype: torch.dtype = torch.float32) -> Tensor:
        made: Tensor = of(shape, dtype=dtype, device=u.device)
        return made

    shared = u.shape[2] != directions
    nothing = workspace(0)
    tiles = triton.cdiv(steps, TILE)
    states = workspace(batch, directions, tiles, n_states, channels)
    carry = workspace(batch, directions, n_states, channels)
    du = workspace(*delta.shape, of=allocate, dtype=torch.float32 if shared else u.dtype) if wanted[0] else nothing
    ddelta = workspace(*delta.shape, of=allocate, dtype=delta.dtype) if wanted[1] else nothing
    dA = workspace(batch, directions, n_states, channels) if wanted[2] else nothing
    of_blocks = (blocks, batch, positions, directions, n_states)
    dB = workspace(*of_blocks, of=allocate) if wanted[3] else nothing
    dC = workspace(*of_blocks, of=allocate) if wanted[4] else nothing
    dD = workspace(batch, directions, channels)
    dbias = workspace(batch, directions, channels)
    with _device_of(u):
        decay = _decay(A)
        _scan(inputs, decay, delta_softplus, nothing, states, config.checkpoints)
        scan_backward[(blocks * batch * directions,)](
            dy, u, delta, decay, B, C, D, delta_bias, order, states, carry, du, ddelta, dA, dB, dC, dD, dbias,
            batch, blocks, directions, u.shape[2], positions, steps, channels, n_states, 1,
            STATES=config.states, BLOCK=config.block, TILE=TILE, SOFTPLUS=delta_softplus,
            WANT_U=wanted[0], WANT_DELTA=wanted[1], WANT_A=wanted[2], WANT_B=wanted[3], WANT_C=wanted[4],
            num_warps=config.warps, **_OPTIONS,
        )  # fmt: skip
        # The second stage: images, blocks of channels, directions. torch.sum on one axis is the same from run to run.
        if wanted[0] and shared:
            du = _add_directions(du, torch.empty_like(u))
        if wanted[2]:
            dA = dA.sum(0).transpose(1, 2).contiguous()
        if wanted[3]:
            dB = _sum_blocks(dB, B.dtype)
        if wanted[4]:
            dC = _sum_blocks(dC, C.dtype)
        return (
            du if wanted[0] else u.new_empty(0),
            ddelta if wanted[1] else delta.new_empty(0),
            dA if wanted[2] else A.new_empty(0),
            dB if wanted[3] else B.new_empty(0),
            dC if wanted[4] else C.new_empty(0),
            dD.sum(0) if wanted[5] else D.new_empty(0),
            dbias.sum(0) if wanted[6] else delta_bias.new_empty(0),
        )


def _scan(
    inputs: Inputs, decay: Tensor, softplus: bool, parts: Tensor, states: Tensor | None, config: ForwardConfig
) -> None:
    """Walks all directions: their outputs to ``parts`` (B, P, G, D), or the state before each tile to ``states``."""
    u, delta, A, B, C, D, delta_bias, order = inputs
    batch, positions, directions, channels = delta.shape
    n_states = A.shape[2]
    blocks = triton.cdiv(channels, config.block)
    scan_forward[(blocks * batch * directions,)](
        u, delta, decay, B, C, D, delta_bias, order, parts, parts if states is None else states,
        blocks, directions, u.shape[2], positions, order.shape[1], channels, n_states, 1,
        N=triton.next_power_of_2(n_states), BLOCK=config.block, TILE=TILE, SOFTPLUS=softplus,
        WRITE_STATES=states is not None, num_warps=config.warps, **_OPTIONS,
    )  # fmt: skip


def _check_offsets(delta: Tensor, A: Tensor) -> None:
    """Offsets within an image are of 32 bits: those of 64 would take twice the registers."""
    _, positions, directions, channels = delta.shape
    if positions * directions * max(channels, A.shape[2]) >= 2**31 - 1:
        raise ScanArgumentError(
            f"delta: one image of {tuple(delta.shape[1:])} has 2^31 elements or more, too many on a GPU"
        )


def _decay(A: Tensor) -> Tensor:
    """A log2(e) with channels innermost: neighbouring lanes then read neighbouring numbers."""
    return (A.transpose(1, 2) * LOG2E.value).contiguous()


def _add_directions(parts: Tensor, total: Tensor) -> Tensor:
    """(B, P, G, D) in float32 to the dtype and elements of ``total``, rounded once."""
    if parts is total:
        return total
    directions, channels = parts.shape[2:]
    grid = (triton.cdiv(total.numel(), _SUM_BLOCK),)
    sum_directions[grid](parts, total, total.numel(), directions, channels, BLOCK=_SUM_BLOCK, num_warps=4, **_OPTIONS)
    return total


def _sum_blocks(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return (parts.sum(0) if parts.shape[0] > 1 else parts[0]).to(dtype)


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device. The interpreter, which the tests use, has tensors of the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
