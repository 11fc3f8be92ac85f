"""The selective scan's contract on shapes and dtypes, for the paths that never reach the native library.

The native library validates what it is given and is the judge of a real call. Tracing (fake tensors) and the pure-PyTorch
reference have no native call to judge them; they check here. Contents (the order's indices) are checked where there are any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_RANKS = {"u": 4, "delta": 4, "A": 3, "B": 4, "C": 4, "D": 2, "delta_bias": 2, "order": 2}


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
) -> None:
    """Check ranks, dtypes, devices and extents.

    Raises:
        ScanArgumentError: with a text that starts with the argument's name.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "order": order}
    for name, tensor in tensors.items():
        if tensor.dim() != _RANKS[name]:
            raise ScanArgumentError(f"{name}: rank {_RANKS[name]} is needed, not {tensor.dim()}: {_shape(tensor)}")
        if tensor.device != u.device:
            raise ScanArgumentError(f"{name}: on {tensor.device}, but u is on {u.device}")
    _check_dtypes(tensors)

    batch, positions, value_directions, channels = u.shape
    directions, steps = order.shape
    states = A.shape[2]
    if value_directions != 1 and value_directions != directions:
        raise ScanArgumentError(f"u: axis 2 must be 1 or {directions} (order's directions), not {value_directions}")
    if directions < 1:
        raise ScanArgumentError("order: no direction")
    if states < 1:
        raise ScanArgumentError("A: no state (axis 2 is 0)")
    expected = {
        "delta": (batch, positions, directions, channels),
        "A": (directions, channels, states),
        "B": (batch, positions, directions, states),
        "C": (batch, positions, directions, states),
        "D": (directions, channels),
        "delta_bias": (directions, channels),
    }
    for name, shape in expected.items():
        for axis, extent in enumerate(shape):
            if tensors[name].shape[axis] != extent:
                raise ScanArgumentError(
                    f"{name}: shape {_shape(tensors[name])} where {tuple(shape)} is needed (axis {axis})"
                )
    if steps > positions:
        raise ScanArgumentError(f"order: {steps} steps on a map of {positions} positions")


def _check_dtypes(tensors: dict[str, Tensor]) -> None:
    u = tensors["u"]
    if u.dtype not in VALUE_DTYPES:
        raise ScanArgumentError(f"u: {u.dtype} where float32, float16, bfloat16 or float64 is needed")
    parameter_dtype = torch.promote_types(u.dtype, torch.float32)
    expected = dict.fromkeys(("delta", "B", "C"), u.dtype) | dict.fromkeys(("A", "D", "delta_bias"), parameter_dtype)
    expected["order"] = torch.int32
    for name, dtype in expected.items():
        if tensors[name].dtype != dtype:
            raise ScanArgumentError(f"{name}: {tensors[name].dtype} where {dtype} is needed (u is {u.dtype})")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
