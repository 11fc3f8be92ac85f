"""The kernels' free numbers: what may be tuned, what is tried, and what is taken where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import triton

# Steps of a tile, and so between two checkpoints. Registers of the backward and, in its inverse, the checkpoints' memory
# grow with it: not tuned, because the memory of a training step should not hang on what a tuner found.
TILE = 8


@dataclass(frozen=True)
class ForwardConfig:
    """``block`` channels a program of ``warps`` warps: block / (32 warps) channels a lane."""

    block: int
    warps: int


@dataclass(frozen=True)
class BackwardConfig:
    """The backward's own numbers, ``states`` states at a time, and those of the pass that leaves its checkpoints."""

    block: int
    warps: int
    states: int
    checkpoints: ForwardConfig = field(default_factory=lambda: ForwardConfig(32, 1))


def default_forward(channels: int, states: int) -> ForwardConfig:
    """Two channels a lane where 2 N numbers of state fit in registers, one warp a program."""
    return ForwardConfig(64 if channels > 32 and states <= 16 else 32, 1)


def default_backward(channels: int, states: int) -> BackwardConfig:
    """As few states at a time as keep the tile in registers on every architecture (see benchmarks/NOTES-triton.md)."""
    block = 64 if channels > 32 else 32
    return BackwardConfig(block, 1, min(4 if block == 32 else 2, triton.next_power_of_2(states)), default_forward(channels, states))
