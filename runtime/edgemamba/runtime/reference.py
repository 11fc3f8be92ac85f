"""The selective scan in NumPy float64: the operator's contract as code, and its gradients.

Slow and meant to be read. Every other implementation (native, PyTorch, ONNX function, CUDA, TensorRT) is tested against it.

    dt  = softplus(delta + delta_bias)                       (identity above 20; or no softplus)
    h_s = exp(dt_p * A) * h_{s-1} + dt_p * B_p * u_p,        p = order[g, s],  h_{-1} = 0
    y_p = sum over the directions g that visit p of ( <C_p, h_s> + D * u_p );  0 where none does
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemamba.runtime.operator import SOFTPLUS_THRESHOLD

Array = npt.NDArray[np.float64]


def selective_scan(
    u: npt.ArrayLike,
    delta: npt.ArrayLike,
    A: npt.ArrayLike,
    B: npt.ArrayLike,
    C: npt.ArrayLike,
    D: npt.ArrayLike,
    delta_bias: npt.ArrayLike,
    order: npt.ArrayLike,
    delta_softplus: bool = True,
) -> Array:
    """The scan's output ``y``, float64 of shape (B, P, D).

    Args:
        u: (B, P, Gu, D), Gu = 1 (shared by all directions) or G.
        delta: (B, P, G, D).
        A: (G, D, N).
        B: (B, P, G, N).
        C: (B, P, G, N).
        D: (G, D).
        delta_bias: (G, D).
        order: integers (G, S); direction g visits position ``order[g, s]`` at step s.
        delta_softplus: apply softplus to ``delta + delta_bias``.
    """
    u, delta, A, B, C, D, delta_bias = (np.asarray(x, np.float64) for x in (u, delta, A, B, C, D, delta_bias))
    order = np.asarray(order)
    batch, positions, directions, channels = delta.shape
    y = np.zeros((batch, positions, channels))
    for g in range(directions):
        u_g = u[:, :, g if u.shape[2] > 1 else 0]
        dt = step_size(delta[:, :, g] + delta_bias[g], delta_softplus)
        h = np.zeros((batch, channels, A.shape[2]))
        for p in order[g]:
            h = _advance(h, dt[:, p], u_g[:, p], A[g], B[:, p, g])
            y[:, p] += (C[:, p, g, None] * h).sum(-1) + D[g] * u_g[:, p]
    return y


def selective_scan_backward(
    u: npt.ArrayLike,
    delta: npt.ArrayLike,
    A: npt.ArrayLike,
    B: npt.ArrayLike,
    C: npt.ArrayLike,
    D: npt.ArrayLike,
    delta_bias: npt.ArrayLike,
    order: npt.ArrayLike,
    delta_softplus: bool = True,
    *,
    dy: npt.ArrayLike,
) -> dict[str, Array]:
    """Gradients of ``sum(y * dy)`` in the seven real inputs, by name, each float64 in the shape of its input.

    Args:
        dy: (B, P, D), the gradient of the output. The others as in :func:`selective_scan`.
    """
    u, delta, A, B, C, D, delta_bias, dy = (np.asarray(x, np.float64) for x in (u, delta, A, B, C, D, delta_bias, dy))
    order = np.asarray(order)
    batch, _, directions, channels = delta.shape
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    grad = {name: np.zeros_like(value) for name, value in inputs.items()}
    for g in range(directions):
        gu = g if u.shape[2] > 1 else 0
        before_softplus = delta[:, :, g] + delta_bias[g]
        dt = step_size(before_softplus, delta_softplus)
        slope = step_size_slope(before_softplus, delta_softplus)

        states = [np.zeros((batch, channels, A.shape[2]))]  # states[s] is h_{s-1}
        for p in order[g]:
            states.append(_advance(states[-1], dt[:, p], u[:, p, gu], A[g], B[:, p, g]))

        dh = np.zeros_like(states[0])  # dL/dh_s, all later steps included
        for s in range(order.shape[1] - 1, -1, -1):
            p = order[g, s]
            u_p, dt_p, B_p, dy_p = u[:, p, gu, :, None], dt[:, p, :, None], B[:, p, g, None], dy[:, p, :, None]
            decay = np.exp(dt_p * A[g])
            dh = dh + dy_p * C[:, p, g, None]
            through_decay = dh * decay * states[s]
            ddelta = slope[:, p] * (through_decay * A[g] + dh * B_p * u_p).sum(-1)

            grad["u"][:, p, gu] += (dh * dt_p * B_p).sum(-1) + D[g] * dy[:, p]
            grad["delta"][:, p, g] = ddelta
            grad["A"][g] += (through_decay * dt_p).sum(0)
            grad["B"][:, p, g] = (dh * dt_p * u_p).sum(1)
            grad["C"][:, p, g] = (dy_p * states[s + 1]).sum(1)
            grad["D"][g] += (dy[:, p] * u[:, p, gu]).sum(0)
            grad["delta_bias"][g] += ddelta.sum(0)
            dh = dh * decay
    return grad


def step_size(x: Array, softplus: bool) -> Array:
    """dt from ``delta + delta_bias``: softplus, the identity above 20 (as in PyTorch and mamba_ssm)."""
    if not softplus:
        return x
    return np.where(x > SOFTPLUS_THRESHOLD, x, np.log1p(np.exp(np.minimum(x, SOFTPLUS_THRESHOLD))))


def step_size_slope(x: Array, softplus: bool) -> Array:
    """The derivative of :func:`step_size`."""
    if not softplus:
        return np.ones_like(x)
    return np.where(x > SOFTPLUS_THRESHOLD, 1.0, 1.0 / (1.0 + np.exp(-np.maximum(x, -700.0))))


def _advance(h: Array, dt: Array, u: Array, A: Array, B: Array) -> Array:
    """One step of the recurrence: h (B, D, N), dt and u (B, D), A (D, N), B (B, N)."""
    result: Array = np.exp(dt[..., None] * A) * h + (dt * u)[..., None] * B[:, None]
    return result
