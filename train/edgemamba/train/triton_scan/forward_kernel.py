"""The forward scan in Triton, and the pass that leaves the backward its checkpoints.

One program walks one direction of one image for BLOCK channels. A lane owns channels and keeps all N states of each in
registers, so the sum over the states needs no exchange between lanes. Steps go in tiles of TILE: the rows of a tile
(u, delta) are loaded and put through the softplus together, and its outputs are stored together, because a store between
loads would keep the compiler from moving the loads up.

``one`` is always 1 and the compiler must not know: channel indices that it cannot see to be consecutive give every tensor
the same layout, one channel a lane, and so no exchange through shared memory between loads and arithmetic.
"""

# Tuples that grow in an unrolled loop are Triton's language rather than typed Python.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from edgemamba.train.triton_scan.arithmetic import position_of, row, softplus, up_to


@triton.jit(do_not_specialize=["one"])
def scan_forward(
    u: tl.tensor,
    delta: tl.tensor,
    decay: tl.tensor,  # (G, N, D) float32: A log2(e), channels innermost
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    delta_bias: tl.tensor,
    order: tl.tensor,
    y: tl.tensor,  # (B, P, G, D): the sum over G is another kernel's
    states: tl.tensor,  # (B, G, tiles, N, D) float32: h before each tile; only where WRITE_STATES
    blocks: tl.tensor,  # of channels
    directions: tl.tensor,
    value_directions: tl.tensor,
    positions: tl.tensor,
    steps: tl.tensor,
    channels: tl.tensor,
    n_states: tl.tensor,
    one: tl.tensor,
    N: tl.constexpr,  # n_states, up to a power of two
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WRITE_STATES: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    image_direction = program // blocks
    b = image_direction // directions
    g = image_direction % directions
    d = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK) * one
    inside = d < channels
    n = tl.arange(0, N)
    is_state = n < n_states

    # To the direction's first position or step.
    u += (b * positions * value_directions + tl.where(value_directions == 1, 0, g)) * channels
    delta += (b * positions * directions + g) * channels
    y += (b * positions * directions + g) * channels
    B += (b * positions * directions + g) * n_states
    C += (b * positions * directions + g) * n_states
    order += g * steps
    u_row = value_directions * channels
    delta_row = directions * channels
    projection_row = directions * n_states

    tiles = tl.cdiv(steps, TILE)
    of_states = n[:, None] * channels + d[None, :]
    is_lane = is_state[:, None] & inside[None, :]
    a = tl.load(decay + g * n_states * channels + of_states, mask=is_lane, other=0.0)
    skip = tl.load(D + g * channels + d, mask=inside, other=0.0)
    bias = tl.load(delta_bias + g * channels + d, mask=inside, other=0.0)
    h = tl.zeros((N, BLOCK), dtype=tl.float32)

    for tile in range(tiles):
        if WRITE_STATES:
            tl.store(states + (image_direction * tiles + tile) * n_states * channels + of_states, h, mask=is_lane)
        p = ()
        values = ()
        dts = ()
        for t in tl.static_range(TILE):
            at = position_of(order, tile * TILE + t, steps, positions)
            p = p + (at,)  # noqa: RUF005 (Triton has no unpacking)
            values = values + (row(u, at, u_row, d, channels),)  # noqa: RUF005
            dts = dts + (row(delta, at, delta_row, d, channels),)  # noqa: RUF005
        outputs = ()
        for t in tl.static_range(TILE):
            dt = dts[t] + bias
            if SOFTPLUS:
                dt = softplus(dt)
            dt = tl.where(p[t] >= 0, dt, 0.0)  # no step keeps the state: decay 1, input 0
            b_row = row(B, p[t], projection_row, n, n_states)
            h = tl.exp2(dt[None, :] * a) * h + (dt * values[t])[None, :] * b_row[:, None]
            if not WRITE_STATES:
                c_row = row(C, p[t], projection_row, n, n_states)
                outputs = outputs + (tl.sum(h * c_row[:, None], axis=0) + skip * values[t],)  # noqa: RUF005
        if not WRITE_STATES:
            for t in tl.static_range(TILE):
                tl.store(y + p[t] * delta_row + d, outputs[t], mask=d < up_to(channels, p[t]))


@triton.jit
def sum_directions(
    parts: tl.tensor,  # (rows, G, D) float32
    total: tl.tensor,  # (rows, D)
    elements: tl.tensor,  # rows * D
    directions: tl.tensor,
    channels: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adds the directions in their order, in float32, and rounds once."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = i // channels * (directions * channels) + i % channels
    value = tl.zeros((BLOCK,), dtype=tl.float32)
    for g in range(directions):
        value += tl.load(parts + first + g * channels, mask=i < elements, other=0.0)
    tl.store(total + i, value, mask=i < elements)
