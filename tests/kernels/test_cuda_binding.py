"""The CUDA scan's Python binding, as far as a machine without a GPU goes: sizes, choices, and what it says to errors."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.native_calls import random_inputs

from edgemamba.runtime import native, native_cuda
from edgemamba.runtime.errors import EngineError, ScanArgumentError
from edgemamba.runtime.native import TensorView
from edgemamba.runtime.operator import INPUT_NAMES


def views(
    batch: int = 1, positions: int = 6084, directions: int = 2, channels: int = 384, states: int = 16
) -> list[TensorView]:
    """Shapes only."""
    f32, f16, i32 = native.FLOAT32, native.FLOAT16, native.INT32
    projections = TensorView(0, (batch, positions, directions, states), f16)
    return [
        TensorView(0, (batch, positions, 1, channels), f16),
        TensorView(0, (batch, positions, directions, channels), f16),
        TensorView(0, (directions, channels, states), f32),
        projections,
        projections,
        TensorView(0, (directions, channels), f32),
        TensorView(0, (directions, channels), f32),
        TensorView(0, (directions, positions), i32),
    ]


def test_workspace_and_choice_need_no_gpu() -> None:
    assert native_cuda.workspace_bytes(views(directions=1), "sequential") == 0
    partial = 2 * 6084 * 4 + -(2 * 6084 * 4) % 256 + 2 * 6084 * 384 * 4
    assert native_cuda.workspace_bytes(views(), "sequential") == partial
    assert native_cuda.workspace_bytes(views(), "chunked", 132) > partial
    assert native_cuda.chosen_algorithm(views(), 132) == "chunked"
    assert native_cuda.chosen_algorithm(views(batch=256, positions=197), 132) == "sequential"


def test_unsupported_shapes_are_refused() -> None:
    with pytest.raises(ScanArgumentError, match="at most 64 states"):
        native_cuda.workspace_bytes(views(states=65))
    with pytest.raises(ScanArgumentError, match="at most 64 states"):
        native_cuda.chosen_algorithm(views(states=65))
    with pytest.raises(ScanArgumentError, match=r"^algorithm: 'fast'"):
        native_cuda.workspace_bytes(views(), "fast")  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    inputs = random_inputs(np.random.default_rng(0), dtype=np.float64)
    arrays = [native.view_of(inputs[name], name) for name in INPUT_NAMES]
    y = np.empty((2, 12, 9), np.float64)
    with pytest.raises(ScanArgumentError, match=r"^u: the CUDA scan takes"):
        native_cuda.scan_forward_cuda(arrays, True, native.view_of(y, "y"))
    with pytest.raises(ScanArgumentError, match=r"^delta, A, order: shapes"):
        native_cuda.workspace_bytes([view._replace(shape=(1,)) for view in arrays])


def test_without_a_gpu_it_says_so() -> None:
    reason = native_cuda.unavailable()
    if reason is None:
        pytest.skip("this machine has a GPU")
    assert reason.startswith("CUDA: ")
    with pytest.raises(EngineError, match=r"^CUDA: "):
        native_cuda.prepare()
    inputs = random_inputs(np.random.default_rng(0))
    y = np.empty((2, 12, 9), np.float32)
    arrays = [native.view_of(inputs[name], name) for name in INPUT_NAMES]
    with pytest.raises(EngineError, match=r"^CUDA: "):
        native_cuda.scan_forward_cuda(arrays, True, native.view_of(y, "y"))
