"""The native library through ctypes: finding it, loading it, and the selective scan on NumPy arrays or raw pointers.

The C ABI and the operator's contract are in ``kernels/include/edgemamba/scan.h``. Arguments are validated there and nowhere
else; what it says about a bad one is raised as :class:`~edgemamba.runtime.errors.ScanArgumentError`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemamba.runtime.errors import NativeLibraryError, ScanArgumentError
from edgemamba.runtime.operator import INPUT_NAMES

ABI_VERSION = 2

# Steps between two of the states that a forward call keeps for its backward one (EM_CHECKPOINT_STEPS).
CHECKPOINT_STEPS = 32

# The numbers of onnx.TensorProto.DataType, which the C ABI uses.
FLOAT32, INT32, FLOAT16, FLOAT64, BFLOAT16 = 1, 6, 10, 11, 16
NUMPY_DTYPES = {"float32": FLOAT32, "int32": INT32, "float16": FLOAT16, "float64": FLOAT64, "bfloat16": BFLOAT16}

_OK, _INVALID_ARGUMENT, _OUT_OF_MEMORY = 0, 1, 2
_MESSAGE_SIZE = 512


class TensorView(NamedTuple):
    """A contiguous row-major tensor in host memory, by address.

    Attributes:
        pointer: address of the first element; 0 for a gradient that is not wanted.
        shape: extents.
        dtype: number of the element type, as in ``onnx.TensorProto``.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: int


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class _Inputs(ctypes.Structure):
    _fields_ = (*((name, _Tensor) for name in INPUT_NAMES), ("delta_softplus", ctypes.c_int32))


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, _Tensor) for name in INPUT_NAMES[:-1])


class _Executor(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int32), ("context", ctypes.c_void_p), ("parallel_for", ctypes.c_void_p))


class _OpenMP(ctypes.Structure):
    _fields_ = (("parallel", ctypes.c_void_p), ("threads", ctypes.c_uint32))


def library_path() -> Path:
    """Where the installed native library lies.

    Raises:
        NativeLibraryError: where edgemamba was installed without it (no C++ compiler was found), or is not installed.
    """
    name = {"win32": "edgemamba.dll", "darwin": "libedgemamba.dylib"}.get(sys.platform, "libedgemamba.so")
    # In an editable install the package has two folders: the checkout's, and the one in site-packages with the library.
    found = resources.files("edgemamba.runtime").joinpath(name)
    path = Path(str(found))
    if not path.is_file():
        raise NativeLibraryError(
            f"{name} is not installed: edgemamba was built without a C++17 compiler; install one (apt install g++) and "
            "run `pip install --force-reinstall --no-deps edgemamba` again"
        )
    return path


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The native library, loaded once, with its functions declared.

    Raises:
        NativeLibraryError: where it is absent, cannot be loaded, or is of another version.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        version = library.em_abi_version()
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(f"{path} cannot be loaded: {error}") from error
    if version != ABI_VERSION:
        raise NativeLibraryError(
            f"{path} has ABI version {version}, this package needs {ABI_VERSION}: install edgemamba again"
        )
    tensor, executor = ctypes.POINTER(_Tensor), ctypes.POINTER(_Executor)
    message = (ctypes.c_char_p, ctypes.c_size_t)
    library.em_selective_scan.argtypes = (ctypes.POINTER(_Inputs), tensor, executor, *message)
    library.em_selective_scan_checkpointed.argtypes = (ctypes.POINTER(_Inputs), tensor, tensor, executor, *message)
    library.em_selective_scan_backward.argtypes = (
        ctypes.POINTER(_Inputs),
        tensor,
        tensor,
        ctypes.POINTER(_Gradients),
        executor,
        *message,
    )
    library.em_isa.restype = library.em_isa_list.restype = ctypes.c_char_p
    return library


def isa() -> str:
    """The instruction set in use: ``scalar``, ``x86-64-v3``, ``x86-64-v4`` or ``neon`` (``EDGEMAMBA_ISA`` forces one)."""
    name: str = load_library().em_isa().decode()
    return name


def available_isas() -> list[str]:
    """The instruction sets that the library has and this machine can run, best first."""
    names: str = load_library().em_isa_list().decode()
    return names.split(",")


def scan_forward(
    inputs: Sequence[TensorView],
    delta_softplus: bool,
    out: TensorView,
    threads: int = 0,
    checkpoints: TensorView | None = None,
    openmp: int | None = None,
) -> None:
    """The selective scan on raw pointers; ``out`` receives y.

    Args:
        inputs: the eight inputs in the operator's order.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        out: (B, P, D) in u's dtype.
        threads: at most this many; 0 for all cores.
        checkpoints: receives, for :func:`scan_backward`, the states before every 32nd step, in the shape that
            :func:`checkpoint_shape` gives; float32. Not where u is float64.
        openmp: address of ``GOMP_parallel`` in the OpenMP library on whose threads to run, ``threads`` of them; None: on threads of
            our own.

    Raises:
        ScanArgumentError: where an argument breaks the contract; the message starts with its name.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    call_inputs, y, (executor, _alive) = _inputs(inputs, delta_softplus), _tensor(out), _executor(threads, openmp)
    library = load_library()
    if checkpoints is None:
        status = library.em_selective_scan(
            ctypes.byref(call_inputs), ctypes.byref(y), ctypes.byref(executor), message, _MESSAGE_SIZE
        )
    else:
        kept = _tensor(checkpoints)
        status = library.em_selective_scan_checkpointed(
            ctypes.byref(call_inputs),
            ctypes.byref(y),
            ctypes.byref(kept),
            ctypes.byref(executor),
            message,
            _MESSAGE_SIZE,
        )
    _raise_for(status, message.value)


def checkpoint_shape(batch: int, steps: int, directions: int, states: int, channels: int) -> tuple[int, ...]:
    """(B, ceil(S / 32), G, N, D): the shape of ``checkpoints``."""
    return batch, -(-steps // CHECKPOINT_STEPS), directions, states, channels


def scan_backward(
    inputs: Sequence[TensorView],
    delta_softplus: bool,
    dy: TensorView,
    gradients: Sequence[TensorView | None],
    threads: int = 0,
    checkpoints: TensorView | None = None,
    openmp: int | None = None,
) -> None:
    """Gradients of ``sum(y * dy)`` on raw pointers.

    Args:
        inputs: the eight inputs in the operator's order.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        dy: (B, P, D) in u's dtype.
        gradients: seven, in the operator's order without ``order``, in the shape and dtype of their inputs; None: not
            wanted, and not computed where that saves work.
        threads: at most this many; 0 for all cores.
        checkpoints: what :func:`scan_forward` left there for the same inputs; None: found again, for a fifth more time.
        openmp: as in :func:`scan_forward`.

    Raises:
        ScanArgumentError: where an argument breaks the contract; the message starts with its name.
    """
    if len(gradients) != len(INPUT_NAMES) - 1:
        raise ScanArgumentError(f"gradients: {len(gradients)} given, expected {len(INPUT_NAMES) - 1}")
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    call_inputs, call_dy = _inputs(inputs, delta_softplus), _tensor(dy)
    executor, _alive = _executor(threads, openmp)
    wanted = _Gradients(*(_Tensor() if view is None else _tensor(view) for view in gradients))
    status = load_library().em_selective_scan_backward(
        ctypes.byref(call_inputs),
        ctypes.byref(call_dy),
        None if checkpoints is None else ctypes.byref(_tensor(checkpoints)),
        ctypes.byref(wanted),
        ctypes.byref(executor),
        message,
        _MESSAGE_SIZE,
    )
    _raise_for(status, message.value)


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
    threads: int = 0,
) -> npt.NDArray[np.generic]:
    """The selective scan on NumPy arrays: y of shape (B, P, D) in u's dtype.

    Shapes are those of :func:`edgemamba.runtime.reference.selective_scan`. ``u``, ``delta``, ``B`` and ``C`` are float32 or
    float16 (with float32 ``A``, ``D``, ``delta_bias``; arithmetic is float32) or float64 throughout; ``order`` is int32.

    Args:
        threads: at most this many; 0 for all cores.

    Raises:
        ScanArgumentError: where an argument breaks the contract; the message starts with its name.
    """
    arrays = [np.ascontiguousarray(array) for array in (u, delta, A, B, C, D, delta_bias, order)]
    views = [view_of(array, name) for array, name in zip(arrays, INPUT_NAMES, strict=True)]
    # A delta of another rank has no output shape; the library says so.
    batch, positions, channels = (*arrays[1].shape[:2], arrays[1].shape[-1]) if arrays[1].ndim == 4 else (0, 0, 0)
    y = np.empty((batch, positions, channels), arrays[0].dtype)
    scan_forward(views, delta_softplus, view_of(y, "y"), threads)
    return y


def view_of(array: npt.NDArray[np.generic], name: str) -> TensorView:
    """The address, shape and dtype of a contiguous array, which must outlive the call that uses it.

    Raises:
        ScanArgumentError: where the dtype has no number in the C ABI; starts with ``name``.
    """
    dtype = NUMPY_DTYPES.get(array.dtype.name)
    if dtype is None:
        raise ScanArgumentError(f"{name}: dtype {array.dtype.name} is not supported by the selective scan")
    return TensorView(array.ctypes.data, array.shape, dtype)


def _tensor(view: TensorView) -> _Tensor:
    shape = (ctypes.c_int64 * len(view.shape))(*view.shape)
    # The cast pointer keeps `shape` alive.
    return _Tensor(
        view.pointer or None, ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)), len(view.shape), view.dtype
    )


def _inputs(views: Sequence[TensorView], delta_softplus: bool) -> _Inputs:
    if len(views) != len(INPUT_NAMES):
        raise ScanArgumentError(f"inputs: {len(views)} given, expected {len(INPUT_NAMES)}: {', '.join(INPUT_NAMES)}")
    return _Inputs(*(_tensor(view) for view in views), int(bool(delta_softplus)))


def _executor(threads: int, openmp: int | None) -> tuple[_Executor, _OpenMP]:
    """The second must outlive the first."""
    library = _OpenMP(openmp, max(1, threads))
    if openmp is None:
        return _Executor(threads), library
    parallel_for = ctypes.cast(load_library().em_openmp_parallel_for, ctypes.c_void_p)
    return _Executor(max(1, threads), ctypes.addressof(library), parallel_for), library


def _raise_for(status: int, message: bytes) -> None:
    if status == _OK:
        return
    text = message.decode(errors="replace")
    if status == _INVALID_ARGUMENT:
        raise ScanArgumentError(text)
    if status == _OUT_OF_MEMORY:
        raise MemoryError(text)
    raise RuntimeError(text)
