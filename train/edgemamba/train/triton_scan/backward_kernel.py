"""The backward scan in Triton: gradients of all seven floating inputs, no atomics.

With G_s the gradient of h_s, x_s = dt_s u_s and E_s = exp(dt_s A):

    G_s = dy_s C_s + E_{s+1} G_{s+1}         dC_s = dy_s h_s        dB_s = G_s x_s       (each summed over the channels)
    dA += G_s dt_s E_s h_{s-1}               ddt_s = sum_n A G_s E_s h_{s-1} + u_s sum_n G_s B_s
    du_s = D dy_s + dt_s sum_n G_s B_s       then through the softplus to delta and delta_bias

One program takes one direction of one image for BLOCK channels and walks the tiles from the last to the first. In a tile it
takes STATES states at a time: reads h before the tile (left by ``scan_forward``), recomputes the TILE states after it into
registers, and walks back. What passes from tile to tile for each state (G and the sum dA) lives in global memory, which
only this program touches: registers for all N states would not leave room for the tile. For the same reason positions are
read again in each of the three loops over the steps: else the compiler keeps 40 addresses of two registers each at hand.

Sums over channels (dB, dC) are a program's own and those over images (dA, dD, ddelta_bias) an image's own; the caller adds
them up in a second stage. So every result is the same from run to run.
"""

# Tuples that grow in an unrolled loop are Triton's language rather than typed Python.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from edgemamba.train.triton_scan.arithmetic import LN2, position_of, row, sigmoid, softplus, up_to


@triton.jit(do_not_specialize=["one"])
def scan_backward(
    dy: tl.tensor,
    u: tl.tensor,
    delta: tl.tensor,
    decay: tl.tensor,  # (G, N, D) float32: A log2(e), channels innermost
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    delta_bias: tl.tensor,
    order: tl.tensor,
    states: tl.tensor,  # (B, G, tiles, N, D) float32
    carry: tl.tensor,  # (B, G, N, D) float32, scratch: G of the step after
    du: tl.tensor,  # (B, P, G, D)
    ddelta: tl.tensor,  # (B, P, G, D)
    dA: tl.tensor,  # (B, G, N, D) float32
    dB: tl.tensor,  # (blocks, B, P, G, N) float32
    dC: tl.tensor,  # (blocks, B, P, G, N) float32
    dD: tl.tensor,  # (B, G, D) float32
    dbias: tl.tensor,  # (B, G, D) float32
    images: tl.tensor,
    blocks: tl.tensor,  # of channels
    directions: tl.tensor,
    value_directions: tl.tensor,
    positions: tl.tensor,
    steps: tl.tensor,
    channels: tl.tensor,
    n_states: tl.tensor,
    one: tl.tensor,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WANT_U: tl.constexpr,
    WANT_DELTA: tl.constexpr,
    WANT_A: tl.constexpr,
    WANT_B: tl.constexpr,
    WANT_C: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    image_direction = program // blocks
    block = program % blocks
    b = image_direction // directions
    g = image_direction % directions
    d = block.to(tl.int32) * BLOCK + tl.arange(0, BLOCK) * one
    inside = d < channels

    # To the direction's first position or step.
    dy += b * positions * channels
    u += (b * positions * value_directions + tl.where(value_directions == 1, 0, g)) * channels
    delta += (b * positions * directions + g) * channels
    du += (b * positions * directions + g) * channels
    ddelta += (b * positions * directions + g) * channels
    B += (b * positions * directions + g) * n_states
    C += (b * positions * directions + g) * n_states
    dB += ((block * images + b) * positions * directions + g) * n_states
    dC += ((block * images + b) * positions * directions + g) * n_states
    order += g * steps
    decay += g * n_states * channels
    carry += image_direction * n_states * channels
    dA += image_direction * n_states * channels
    u_row = value_directions * channels
    delta_row = directions * channels
    projection_row = directions * n_states

    skip = tl.load(D + g * channels + d, mask=inside, other=0.0)
    bias = tl.load(delta_bias + g * channels + d, mask=inside, other=0.0)
    sum_D = tl.zeros((BLOCK,), dtype=tl.float32)
    sum_bias = tl.zeros((BLOCK,), dtype=tl.float32)

    tiles = tl.cdiv(steps, TILE)
    for walked in range(tiles):
        tile = tiles - 1 - walked
        # Through the loop over the states: five numbers for each step and channel, and no more, for the registers' sake.
        grads = ()
        dts = ()
        inputs = ()  # dt u
        by_decay = ()  # sum_n G_s (A log2 e) E_s h_{s-1}
        by_input = ()  # sum_n G_s B_s
        for t in tl.static_range(TILE):
            at = position_of(order, tile * TILE + t, steps, positions)
            grads = grads + (row(dy, at, channels, d, channels),)  # noqa: RUF005 (Triton has no unpacking)
            dt = row(delta, at, delta_row, d, channels) + bias
            if SOFTPLUS:
                dt = softplus(dt)
            dt = tl.where(at >= 0, dt, 0.0)
            dts = dts + (dt,)  # noqa: RUF005
            inputs = inputs + (dt * row(u, at, u_row, d, channels),)  # noqa: RUF005
            by_decay = by_decay + (tl.zeros((BLOCK,), dtype=tl.float32),)  # noqa: RUF005
            by_input = by_input + (tl.zeros((BLOCK,), dtype=tl.float32),)  # noqa: RUF005

        for first in range(0, n_states, STATES):
            n = first + tl.arange(0, STATES)
            is_state = n < n_states
            of_states = n[:, None] * channels + d[None, :]
            is_lane = is_state[:, None] & inside[None, :]
            a = tl.load(decay + of_states, mask=is_lane, other=0.0)
            before = states + (image_direction * tiles + tile) * n_states * channels
            h = tl.load(before + of_states, mask=is_lane, other=0.0)
            # The last tile, which comes first, finds nothing in the scratch.
            was_written = is_lane & (of_states < tl.where(walked > 0, n_states * channels, 0))
            G = tl.load(carry + of_states, mask=was_written, other=0.0)
            if WANT_A:
                sum_A = tl.load(dA + of_states, mask=was_written, other=0.0)

            hs = (h,)
            for t in tl.static_range(TILE):
                at = position_of(order, tile * TILE + t, steps, positions)
                b_row = row(B, at, projection_row, n, n_states)
                h = tl.exp2(dts[t][None, :] * a) * h + inputs[t][None, :] * b_row[:, None]
                hs = hs + (h,)  # noqa: RUF005

            later_decay = ()
            later_input = ()
            for t in tl.static_range(TILE - 1, -1, -1):
                at = position_of(order, tile * TILE + t, steps, positions)
                c_row = row(C, at, projection_row, n, n_states)
                b_row = row(B, at, projection_row, n, n_states)
                stored = n < up_to(n_states, at)
                if WANT_C:
                    tl.store(dC + at * projection_row + n, tl.sum(grads[t][None, :] * hs[t + 1], axis=1), mask=stored)
                G = grads[t][None, :] * c_row[:, None] + G
                if WANT_B:
                    tl.store(dB + at * projection_row + n, tl.sum(G * inputs[t][None, :], axis=1), mask=stored)
                later_input = (by_input[t] + tl.sum(G * b_row[:, None], axis=0),) + later_input  # noqa: RUF005
                G = G * tl.exp2(dts[t][None, :] * a)
                inner = G * hs[t]
                later_decay = (by_decay[t] + tl.sum(inner * a, axis=0),) + later_decay  # noqa: RUF005
                if WANT_A:
                    sum_A += inner * dts[t][None, :]
            by_decay = later_decay
            by_input = later_input
            tl.store(carry + of_states, G, mask=is_lane)
            if WANT_A:
                tl.store(dA + of_states, sum_A, mask=is_lane)

        for t in tl.static_range(TILE):
            at = position_of(order, tile * TILE + t, steps, positions)
            there = d < up_to(channels, at)
            value = row(u, at, u_row, d, channels)  # again, from the cache
            ddt = value * by_input[t] + by_decay[t] * LN2
            if SOFTPLUS:
                ddt = ddt * sigmoid(row(delta, at, delta_row, d, channels) + bias)
            sum_D += grads[t] * value
            sum_bias += tl.where(there, ddt, 0.0)
            if WANT_DELTA:
                tl.store(ddelta + at * delta_row + d, ddt, mask=there)
            if WANT_U:
                tl.store(du + at * delta_row + d, dts[t] * by_input[t] + skip * grads[t], mask=there)

    tl.store(dD + image_direction * channels + d, sum_D, mask=inside)
    tl.store(dbias + image_direction * channels + d, sum_bias, mask=inside)
