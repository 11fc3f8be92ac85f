"""The selective scan of CUDA tensors: Triton kernels for float32 and narrower; float64 goes through the CPU's kernel.

Triton is imported at the first call, so that everything else works without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.runtime.extras import require

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(inputs: Inputs, delta_softplus: bool) -> Tensor:
    """y (B, P, D); ``inputs`` are the operator's eight, in agreement with its contract.

    Raises:
        MissingExtraError: Triton is not installed.
        ScanArgumentError: the GPU is not NVIDIA's.
    """
    if inputs[0].dtype == torch.float64:
        on_host = (tensor.cpu() for tensor in inputs)
        y: Tensor = torch.ops.edgemamba.selective_scan(*on_host, delta_softplus)
        return y.to(inputs[0].device)
    return launcher(inputs[0]).forward(_contiguous(inputs), delta_softplus)  # type: ignore[no-any-return]


def backward(dy: Tensor, inputs: Inputs, delta_softplus: bool, wanted: Sequence[bool]) -> Gradients:
    """Gradients of ``sum(y * dy)`` in the seven floating inputs; an unwanted one is empty. Errors as in :func:`forward`."""
    if dy.dtype == torch.float64:
        on_host = (tensor.cpu() for tensor in (dy, *inputs))
        gradients = torch.ops.edgemamba.selective_scan_backward(*on_host, delta_softplus, list(wanted))
        return tuple(gradient.to(dy.device) for gradient in gradients)  # type: ignore[return-value]
    return launcher(dy).backward(dy.contiguous(), _contiguous(inputs), delta_softplus, wanted)  # type: ignore[no-any-return]


def launcher(tensor: Tensor) -> ModuleType:
    """:mod:`edgemamba.train.triton_scan.launch`, or one line that says why it cannot serve ``tensor``."""
    if torch.version.hip is not None:
        raise ScanArgumentError(f"u: on {tensor.device} of ROCm; the selective scan runs on the CPU and on NVIDIA GPUs")
    require("triton", purpose="the selective scan on a GPU")
    return import_module("edgemamba.train.triton_scan.launch")


def _contiguous(inputs: Inputs) -> Inputs:
    return tuple(tensor.contiguous() for tensor in inputs)  # type: ignore[return-value]
