"""Random inputs of the selective scan, and ways to run them through ONNX models in any element type."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgemamba.export.graph import attach_function, selective_scan_model, selective_scan_node
from edgemamba.runtime.operator import INPUT_NAMES, OUTPUT_NAME

Inputs = dict[str, NDArray[Any]]

# In T; A, D and delta_bias stay float32, order int32.
TYPED = ("u", "delta", "B", "C")
# Rounding of one result, relative; what the float32 arithmetic adds is the same for all.
TOLERANCE = {TensorProto.FLOAT: 4e-6, TensorProto.FLOAT16: 1e-3, TensorProto.BFLOAT16: 8e-3}


class Case(NamedTuple):
    """Extents of one call, and what is special about its values."""

    batch: int
    positions: int
    u_directions: int
    directions: int
    channels: int
    states: int
    steps: int
    values: str = "plain"
    delta_softplus: bool = True


CASES = {
    "vim": Case(2, 17, 1, 2, 24, 16, 17),
    "four_directions": Case(2, 12, 1, 4, 6, 3, 12),
    "own_u": Case(1, 9, 2, 2, 8, 16, 9),
    "partial_orders": Case(2, 20, 1, 4, 5, 8, 5),
    "partial_own_u": Case(3, 11, 3, 3, 7, 4, 6),
    "one_position": Case(1, 1, 1, 1, 4, 1, 1),
    "one_state": Case(1, 13, 1, 2, 33, 1, 13),
    "many_states": Case(1, 7, 1, 1, 9, 64, 7),
    "no_softplus": Case(2, 10, 1, 2, 5, 4, 10, delta_softplus=False),
    "huge_delta": Case(1, 15, 1, 2, 10, 8, 15, values="huge_delta"),
    "very_negative_A": Case(1, 15, 1, 2, 10, 8, 15, values="very_negative_A"),
    "small_steps": Case(1, 15, 1, 2, 10, 8, 15, values="small_steps"),
    "long": Case(1, 600, 1, 1, 4, 16, 600),
    "empty_batch": Case(0, 7, 3, 3, 4, 2, 7),
}


def draw(case: Case, seed: int = 0) -> Inputs:
    """Inputs in float32 and int32."""
    rng = np.random.default_rng(seed)
    batch, positions, u_directions, directions, channels, states, steps = case[:7]

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    inputs: Inputs = {
        "u": normal(batch, positions, u_directions, channels),
        "delta": normal(batch, positions, directions, channels) - 2,
        "A": -np.exp(normal(directions, channels, states)),
        "B": normal(batch, positions, directions, states),
        "C": normal(batch, positions, directions, states),
        "D": normal(directions, channels),
        "delta_bias": normal(directions, channels),
        "order": np.stack([rng.permutation(positions)[:steps] for _ in range(directions)]).astype(np.int32),
    }
    if not case.delta_softplus:  # the step itself: positive, as a model's would be
        inputs["delta"] = np.exp(inputs["delta"])
        inputs["delta_bias"] = np.abs(inputs["delta_bias"])
    if case.values == "huge_delta":
        inputs["delta"] = rng.uniform(-50, 50, inputs["delta"].shape).astype(np.float32)
    if case.values == "very_negative_A":
        inputs["A"] = -np.exp(rng.uniform(-7, 7, inputs["A"].shape)).astype(np.float32)
    if case.values == "small_steps":  # softplus of -12 is 6e-6: log(1 + e) in float32 has one digit left
        inputs["delta"] = inputs["delta"] - 10
        inputs["D"] = np.zeros_like(inputs["D"])
    return inputs


def rounded(inputs: Inputs, dtype: int) -> Inputs:
    """The inputs as they are after a cast to T and back."""
    return {name: _round(value, dtype) if name in TYPED else value for name, value in inputs.items()}


def _round(value: NDArray[np.float32], dtype: int) -> NDArray[np.float32]:
    if dtype == TensorProto.FLOAT16:
        return value.astype(np.float16).astype(np.float32)
    if dtype == TensorProto.BFLOAT16:  # to nearest, ties to even, on the upper 16 bits
        bits = value.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return value


def model_in(dtype: int, *, delta_softplus: bool = True, function: bool = True) -> onnx.ModelProto:
    """One SelectiveScan in T between casts from and to float32, because NumPy has no bfloat16."""
    model = selective_scan_model(delta_softplus=delta_softplus, function=False)
    cast = [helper.make_node("Cast", [name], [f"{name}_cast"], to=dtype) for name in TYPED]
    node = selective_scan_node(
        [f"{name}_cast" if name in TYPED else name for name in INPUT_NAMES], "y_cast", delta_softplus=delta_softplus
    )
    back = helper.make_node("Cast", ["y_cast"], [OUTPUT_NAME], to=TensorProto.FLOAT)
    del model.graph.node[:]
    model.graph.node.extend([*cast, node, back])
    return attach_function(model) if function else model


def assert_close(found: NDArray[Any], expected: NDArray[np.float64], dtype: int = TensorProto.FLOAT) -> None:
    """Within the rounding of T, relative to the largest value expected."""
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
