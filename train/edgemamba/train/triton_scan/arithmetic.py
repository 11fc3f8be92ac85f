"""What the scan's Triton kernels share: softplus, its derivative, and reading a step's position and rows.

Names of tensors are those of DESIGN section 2. Importing this module needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that kernels read have to be constexpr.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + e^x), x itself above 20, NaN for NaN.

    log(1 + z) = z p(z) on [0, 1] with the polynomial of kernels/cuda/scan_step.h (relative error 5e-8, exact at 0):
    ``log(1 + z)`` itself loses a small step's relative accuracy.
    """
    z = tl.exp2(-tl.abs(x) * LOG2E)
    p = 5.36482316e-3 * z - 3.00657898e-2
    p = p * z + 7.92045295e-2
    p = p * z - 1.37538016e-1
    p = p * z + 1.91536546e-1
    p = p * z - 2.48571634e-1
    p = p * z + 3.33213240e-1
    p = p * z - 4.99996483e-1
    p = p * z + 1.0
    # A NaN is not below 0. Above the threshold z * p is less than half an ulp of x: no select is needed for it.
    return z * p + tl.where(x < 0.0, 0.0, x)


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """The derivative of softplus, without overflow."""
    z = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x > 0.0, 1.0, z) / (1.0 + z)


@triton.jit
def position_of(order: tl.tensor, step: tl.tensor, steps: tl.tensor, positions: tl.tensor) -> tl.tensor:
    """The position of a step; -1, no step, past the end and where the order leaves the map."""
    p = tl.load(order + step, mask=step < steps, other=-1)
    return tl.where((p >= 0) & (p < positions), p, -1)


@triton.jit
def up_to(count: tl.tensor, p: tl.tensor) -> tl.tensor:
    """``count`` elements of position ``p``'s row exist, none where there is no step."""
    return tl.where(p >= 0, count, 0)


@triton.jit
def row(pointer: tl.tensor, p: tl.tensor, length: tl.tensor, at: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Elements ``at``, below ``count``, of row ``p`` in float32; zeros where there is no step."""
    return tl.load(pointer + p * length + at, mask=at < up_to(count, p), other=0.0).to(tl.float32)
