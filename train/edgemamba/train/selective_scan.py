"""The selective scan as a PyTorch operator: ``torch.ops.edgemamba.selective_scan``.

Forward and backward run in the native library (``kernels/``) on the CPU and in Triton kernels (``triton_scan/``) on NVIDIA
GPUs; shapes and dtypes alone are enough for tracing, so ``torch.compile`` and ``torch.export`` see one opaque node, which the
exporter turns into the ONNX operator ``SelectiveScan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgemamba.runtime import native
from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.runtime.operator import INPUT_NAMES
from edgemamba.train import openmp, triton_dispatch
from edgemamba.train.scan_contract import check_arguments

# torch dtype -> ONNX TensorProto.DataType, the numbers that the native library speaks.
_ONNX_DTYPE = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}


def selective_scan(
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
    """Selective scan (Mamba, arXiv:2312.00752, section 3.2) in G directions over one channels-last map.

    ``dt = softplus(delta + delta_bias)``; ``h_s = exp(dt_p A) h_{s-1} + dt_p B_p u_p`` with ``p = order[g, s]`` and a zero
    state before the first step; ``y[p]`` sums ``<C_p, h_s> + D u_p`` over the directions that visit ``p``, and is 0 where
    none does.

    Args:
        u: (B, P, Gu, D) values; Gu is 1 (shared by all directions) or G. float32, float16, bfloat16 or float64.
        delta: (B, P, G, D) step sizes before bias and softplus; dtype of ``u``.
        A: (G, D, N) decay rates, negative in every model; float32 (float64 where ``u`` is).
        B, C: (B, P, G, N) input and output projections; dtype of ``u``.
        D: (G, D) skip; float32 (float64 where ``u`` is).
        delta_bias: (G, D) added before the softplus; float32 (float64 where ``u`` is).
        order: (G, S) int32; direction g visits position ``order[g, s]`` at step s; S <= P, and no position twice in one
            direction. :func:`edgemamba.train.scan_orders.scan_order` makes them.
        delta_softplus: False uses ``delta + delta_bias`` as it is.

    Under autocast ``u``, ``delta``, ``B`` and ``C`` are cast to the autocast dtype; the parameters ``A``, ``D`` and
    ``delta_bias`` stay float32, and so do the arithmetic and the state whatever the dtype of ``u``.

    Returns:
        (B, P, D) in the dtype of ``u``; differentiable once in every floating argument.

    Raises:
        ScanArgumentError: an argument breaks the contract above; the text starts with its name.
        NativeLibraryError: this installation has no native library (tensors on the CPU).
        MissingExtraError: Triton is not installed (tensors on a GPU).

    Where gradients will be wanted of tensors on the CPU (not float64), the states at every 32nd step are kept for the backward
    pass: float32, (B, ceil(S / 32), G, N, D). That saves it a walk over the steps. Graphs of ``torch.compile`` and ``torch.export``
    hold the plain operator and keep none.

    On a GPU the contents of ``order`` are not checked, because that would wait for the device: a position outside 0..P-1 is
    no step. float64 goes there through the CPU and back: slow, for checking gradients.
    """
    device = u.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        u, delta, B, C = (tensor.to(dtype) for tensor in (u, delta, B, C))
        A, D, delta_bias = A.float(), D.float(), delta_bias.float()
    arguments = (u, delta, A, B, C, D, delta_bias, order, delta_softplus)
    if _keeps_checkpoints(*arguments[:7]):
        return torch.ops.edgemamba.selective_scan_checkpointed(*arguments)[0]
    return torch.ops.edgemamba.selective_scan(*arguments)


def _keeps_checkpoints(*tensors: Tensor) -> bool:
    # A graph that is being traced keeps to the one operator that exporters know.
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and tensors[0].device.type == "cpu"
        and tensors[0].dtype != torch.float64
        and any(tensor.requires_grad for tensor in tensors)
    )


@torch.library.custom_op("edgemamba::selective_scan", mutates_args=())
def _forward(
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
    inputs = _contiguous(u, delta, A, B, C, D, delta_bias, order)
    y = _empty_output(u)
    native.scan_forward(
        [_view(x) for x in inputs], delta_softplus, _view(y), torch.get_num_threads(), openmp=openmp.of_torch()
    )
    return y


@torch.library.custom_op("edgemamba::selective_scan_checkpointed", mutates_args=())
def _checkpointed(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and, for the backward pass, the states at every 32nd step. On the CPU; not float64."""
    inputs = _contiguous(u, delta, A, B, C, D, delta_bias, order)
    y, checkpoints = _empty_output(u), _empty_checkpoints(A, u, order)
    native.scan_forward(
        [_view(x) for x in inputs],
        delta_softplus,
        _view(y),
        torch.get_num_threads(),
        _view(checkpoints),
        openmp.of_torch(),
    )
    return y, checkpoints


@torch.library.custom_op("edgemamba::selective_scan_backward", mutates_args=())
def _backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool,
    wanted: Sequence[bool],
    checkpoints: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``sum(y * dy)`` in (u, delta, A, B, C, D, delta_bias); an unwanted one is empty, and costs nothing.

    ``checkpoints`` as ``selective_scan_checkpointed`` gave them; without, they are found again.
    """
    inputs = _contiguous(u, delta, A, B, C, D, delta_bias, order)
    dy = dy.contiguous()
    kept = None if checkpoints is None else checkpoints.contiguous()
    gradients = _empty_gradients(inputs[:7], wanted)
    native.scan_backward(
        [_view(x) for x in inputs],
        delta_softplus,
        _view(dy),
        [_view(gradient) if want else None for gradient, want in zip(gradients, wanted, strict=True)],
        torch.get_num_threads(),
        None if kept is None else _view(kept),
        openmp.of_torch(),
    )
    return gradients


@_forward.register_kernel("cuda")
def _forward_cuda(
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
    check_arguments(u, delta, A, B, C, D, delta_bias, order)
    return triton_dispatch.forward((u, delta, A, B, C, D, delta_bias, order), delta_softplus)


@_backward.register_kernel("cuda")
def _backward_cuda(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool,
    wanted: Sequence[bool],
    checkpoints: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_arguments(u, delta, A, B, C, D, delta_bias, order)
    return triton_dispatch.backward(dy, (u, delta, A, B, C, D, delta_bias, order), delta_softplus, wanted)


@_forward.register_fake
def _forward_shape(
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
    check_arguments(u, delta, A, B, C, D, delta_bias, order)
    return u.new_empty(u.shape[0], u.shape[1], u.shape[3])


@_checkpointed.register_fake
def _checkpointed_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    y = _forward_shape(u, delta, A, B, C, D, delta_bias, order, delta_softplus)
    return y, _empty_checkpoints(A, u, order)


@_backward.register_fake
def _backward_shapes(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: Tensor,
    delta_softplus: bool,
    wanted: Sequence[bool],
    checkpoints: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_arguments(u, delta, A, B, C, D, delta_bias, order)
    return _empty_gradients((u, delta, A, B, C, D, delta_bias), wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: gradient checkpointing refuses a second time
    inputs, checkpoints = saved[:8], saved[8] if len(saved) > 8 else None
    wanted = list(ctx.needs_input_grad[:7])
    gradients = torch.ops.edgemamba.selective_scan_backward(dy, *inputs, ctx.delta_softplus, wanted, checkpoints)
    return (*(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)), None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _keep_checkpoints(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _differentiate_checkpointed(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    # None, not zeros, where nothing depends on an output: so that there are no zeros for the checkpoints.
    return (None,) * 9 if dy is None else _differentiate(ctx, dy)


_checkpointed.register_autograd(_differentiate_checkpointed, setup_context=_keep_checkpoints)


def _empty_output(u: Tensor) -> Tensor:
    # The native library is the judge of the arguments; the extents are only read here if the ranks allow it.
    return u.new_empty((*u.shape[:2], u.shape[3]) if u.dim() == 4 else ())


def _empty_checkpoints(A: Tensor, u: Tensor, order: Tensor) -> Tensor:
    if A.dim() != 3 or u.dim() != 4 or order.dim() != 2:
        return A.new_empty(())
    directions, channels, states = A.shape
    shape = native.checkpoint_shape(u.shape[0], order.shape[1], directions, states, channels)
    return A.new_empty(shape, dtype=torch.float32)


def _empty_gradients(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
    """One uninitialised contiguous tensor for each input, without elements where it is not wanted."""
    return tuple(x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """The operator's inputs in host memory and row-major; they must outlive the native call."""
    for name, tensor in zip(INPUT_NAMES, tensors, strict=True):
        if tensor.device.type != "cpu":
            raise ScanArgumentError(
                f"{name}: on {tensor.device}; the selective scan runs on the CPU and on NVIDIA GPUs, all its arguments on one device"
            )
    return [tensor.contiguous() for tensor in tensors]


def _view(tensor: Tensor) -> native.TensorView:
    """What the native library needs of a contiguous tensor. An unknown dtype becomes 0, which it refuses by name."""
    return native.TensorView(tensor.data_ptr(), tuple(tensor.shape), _ONNX_DTYPE.get(tensor.dtype, 0))
