"""The kernels' free numbers: what may be tuned, what is tried, and what is taken where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass

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
    checkpoints: ForwardConfig


def forward_candidates(channels: int, states: int) -> tuple[ForwardConfig, ...]:
    """What is timed for the forward: one or two channels a lane, one to four warps a program.

    The default, first, has no spills with either of Triton 3.6 and 3.9; with 3.6 two channels a lane have.
    """
    shapes = ((32, 1), (64, 1), (64, 2), (128, 2), (128, 4)) if states <= 16 else ((32, 1), (64, 2), (128, 4))
    return tuple(ForwardConfig(*shape) for shape in shapes if shape[0] == 32 or channels > shape[0] // 2)


def backward_candidates(channels: int, states: int) -> tuple[BackwardConfig, ...]:
    """What is timed for the backward, the default first: the one without spills on every architecture."""
    most = triton.next_power_of_2(states)
    shapes = ((32, 1, 2), (32, 1, 4), (64, 2, 2), (128, 4, 2), (64, 1, 2))
    fitting = (shape for shape in shapes if shape[0] == 32 or channels > shape[0] // 2)
    checkpoints = default_forward(channels, states)
    return tuple(dict.fromkeys(BackwardConfig(b, w, min(s, most), checkpoints) for b, w, s in fitting))


def default_forward(channels: int, states: int) -> ForwardConfig:
    """Taken where nothing was measured."""
    return forward_candidates(channels, states)[0]


def default_backward(channels: int, states: int) -> BackwardConfig:
    """Taken where nothing was measured."""
    return backward_candidates(channels, states)[0]
