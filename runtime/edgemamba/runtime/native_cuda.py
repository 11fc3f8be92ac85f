"""The native library's CUDA scan through ctypes: is it usable here, how much workspace, and the scan on device pointers.

The C ABI is in ``kernels/include/edgemamba/scan_cuda.h``. Nothing here needs a CUDA package: whoever calls brings device
addresses, a stream and a current context (PyTorch, cuda-python and TensorRT all make the primary context current).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from edgemamba.runtime import native
from edgemamba.runtime.errors import EngineError, ScanArgumentError
from edgemamba.runtime.native import TensorView

Algorithm = Literal["auto", "sequential", "chunked"]

MAX_STATES = 64

_ALGORITHMS: dict[str, int] = {"auto": 0, "sequential": 1, "chunked": 2}
_OK, _UNAVAILABLE, _CUDA_ERROR = 0, 16, 17
_MESSAGE_SIZE = 512
_NO_SUCH_SHAPE = ctypes.c_size_t(-1).value


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = native.load_library()
    extents = (ctypes.c_int64,) * 6
    message = (ctypes.c_char_p, ctypes.c_size_t)
    library.em_cuda_scan_workspace.argtypes = (*extents, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)
    library.em_cuda_scan_workspace.restype = ctypes.c_size_t
    library.em_cuda_scan_algorithm.argtypes = (*extents, ctypes.c_int32, ctypes.c_int32)
    library.em_cuda_scan_algorithm.restype = ctypes.c_int32
    library.em_cuda_available.argtypes = library.em_cuda_prepare.argtypes = message
    library.em_cuda_selective_scan.argtypes = (
        ctypes.POINTER(native._Inputs),
        ctypes.POINTER(native._Tensor),
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int32,
        ctypes.c_void_p,
        *message,
    )
    return library


def unavailable() -> str | None:
    """Why the CUDA scan cannot run on this machine (no driver, no device, too old a device); None where it can.

    Raises:
        NativeLibraryError: where the native library itself is absent.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    status = _library().em_cuda_available(message, _MESSAGE_SIZE)
    return None if status == _OK else message.value.decode(errors="replace")


def prepare() -> None:
    """Loads the device code into the current context, which takes seconds the first time: before timing or capture.

    Raises:
        EngineError: where there is no driver, device or current context, or the driver refuses; the message says which.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    _raise_for(_library().em_cuda_prepare(message, _MESSAGE_SIZE), message.value)


def workspace_bytes(inputs: Sequence[TensorView], algorithm: Algorithm = "auto", multiprocessors: int = 0) -> int:
    """Bytes of device memory that :func:`scan_forward_cuda` needs beside its tensors; needs no GPU.

    Args:
        inputs: the eight inputs in the operator's order; only shapes and u's dtype are looked at.
        algorithm: the form that will be asked for.
        multiprocessors: of the device, which decides the number of chunks; 0: a middling device.

    Raises:
        ScanArgumentError: where the CUDA scan has no such shape or dtype (float64, more than 64 states).
    """
    found: int = _library().em_cuda_scan_workspace(*_extents(inputs), _number(algorithm), multiprocessors)
    if found == _NO_SUCH_SHAPE:
        raise ScanArgumentError(
            f"u: the CUDA scan takes float32, float16 or bfloat16, at most {MAX_STATES} states and S <= P"
        )
    return found


def chosen_algorithm(inputs: Sequence[TensorView], multiprocessors: int = 0) -> Algorithm:
    """What ``auto`` takes for these shapes; needs no GPU. Arguments and errors as for :func:`workspace_bytes`."""
    number: int = _library().em_cuda_scan_algorithm(*_extents(inputs), multiprocessors)
    if number == 0:
        workspace_bytes(inputs, "auto", multiprocessors)
    return "chunked" if number == _ALGORITHMS["chunked"] else "sequential"


def scan_forward_cuda(
    inputs: Sequence[TensorView],
    delta_softplus: bool,
    out: TensorView,
    *,
    stream: int = 0,
    workspace: int = 0,
    workspace_size: int = 0,
    algorithm: Algorithm = "auto",
) -> None:
    """Enqueues the selective scan on device pointers and returns at once; ``out`` receives y.

    Args:
        inputs: the eight inputs in the operator's order, contiguous, in device memory of the current context. T is
            float32, float16 or bfloat16. ``order`` is not checked: entries outside 0..P-1 are left out by the kernels.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        out: (B, P, D) in u's dtype, in device memory.
        stream: a CUstream or cudaStream_t by address; 0: the default stream.
        workspace: device memory of ``workspace_size`` bytes, aligned to 16, in use until the stream has passed this call.
        workspace_size: at least :func:`workspace_bytes` of this device; with less, fewer chunks are used.
        algorithm: ``auto`` chooses by a cost rule.

    Raises:
        ScanArgumentError: where an argument breaks the contract; the message starts with its name.
        EngineError: where there is no driver, device or current context, or a launch failed.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    call_inputs, y = native._inputs(inputs, delta_softplus), native._tensor(out)
    status = _library().em_cuda_selective_scan(
        ctypes.byref(call_inputs),
        ctypes.byref(y),
        workspace or None,
        workspace_size,
        _number(algorithm),
        stream or None,
        message,
        _MESSAGE_SIZE,
    )
    _raise_for(status, message.value)


def _extents(inputs: Sequence[TensorView]) -> tuple[int, int, int, int, int, int, int]:
    """B, P, D, G, N, S and u's dtype."""
    u, delta, A, *_, order = inputs
    if len(delta.shape) != 4 or len(A.shape) != 3 or len(order.shape) != 2:
        raise ScanArgumentError(
            f"delta, A, order: shapes {delta.shape}, {A.shape}, {order.shape}, expected (B, P, G, D), (G, D, N), (G, S)"
        )
    batch, positions, directions, channels = delta.shape
    return batch, positions, channels, directions, A.shape[2], order.shape[1], u.dtype


def _number(algorithm: str) -> int:
    if algorithm not in _ALGORITHMS:
        raise ScanArgumentError(f"algorithm: {algorithm!r}, expected one of {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[algorithm]


def _raise_for(status: int, message: bytes) -> None:
    if status in (_UNAVAILABLE, _CUDA_ERROR):
        raise EngineError(message.decode(errors="replace"))
    native._raise_for(status, message)
