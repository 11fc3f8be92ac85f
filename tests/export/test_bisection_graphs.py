"""The search for the first diverging tensor, on small graphs made by hand and run by onnx.reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgemamba.export.bisection import activations, locate, tensor_error
from edgemamba.export.probing import with_outputs

DEPTH = 10
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.normal(0, 0.3, (8, 8)).astype(np.float32) for _ in range(2 * DEPTH)]
FRAMES = RNG.normal(0, 1, (3, 8)).astype(np.float32)


def network(weights: Sequence[np.ndarray] = WEIGHTS) -> onnx.ModelProto:
    """Residual blocks of two parallel branches: x + tanh(x W_a) + sigmoid(x W_b), with a shape computation beside them."""
    nodes = [helper.make_node("Shape", ["x0"], ["shape"], name="shape")]
    for i in range(DEPTH):
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"w{2 * i}"], [f"a{i}"], name=f"layers.{i}.left/MatMul"),
            helper.make_node("Tanh", [f"a{i}"], [f"ta{i}"], name=f"layers.{i}.left/Tanh"),
            helper.make_node("MatMul", [f"x{i}", f"w{2 * i + 1}"], [f"b{i}"], name=f"layers.{i}.right/MatMul"),
            helper.make_node("Sigmoid", [f"b{i}"], [f"rb{i}"], name=f"layers.{i}.right/Sigmoid"),
            helper.make_node("Add", [f"ta{i}", f"rb{i}"], [f"s{i}"], name=f"layers.{i}/Add"),
            helper.make_node("Add", [f"x{i}", f"s{i}"], [f"r{i}"], name=f"layers.{i}/Add_1"),
            helper.make_node("Reshape", [f"r{i}", "shape"], [f"x{i + 1}"], name=f"layers.{i}/Reshape"),
        ]
    names = [name for node in nodes for name in node.output if name not in ("shape", f"x{DEPTH}")]
    float_info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in names]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(f"x{DEPTH}", TensorProto.FLOAT, ["n", 8])],
        initializer=[numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        value_info=[*float_info, helper.make_tensor_value_info("shape", TensorProto.INT64, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def fetch(model: onnx.ModelProto, count: list[int] | None = None) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    def run(names: Sequence[str]) -> dict[str, np.ndarray]:
        if count is not None:
            count.append(len(names))
        marked = with_outputs(model, names)
        outputs = [value.name for value in marked.graph.output]
        return dict(zip(outputs, ReferenceEvaluator(marked).run(outputs, {"x0": FRAMES}), strict=True))

    return run


def faulty(index: int, amount: float) -> onnx.ModelProto:
    weights = [w.copy() for w in WEIGHTS]
    weights[index][2, 3] += amount
    return network(weights)


def test_tensors_that_everything_passes_through_are_the_block_outputs() -> None:
    through = [item.name for item in activations(network()) if item.everything_passes]
    assert through == [name for i in range(DEPTH) for name in (f"r{i}", f"x{i + 1}")]


def test_integer_shapes_are_no_activations() -> None:
    assert "shape" not in [item.name for item in activations(network())]


@pytest.mark.parametrize("index", range(2 * DEPTH))
@pytest.mark.parametrize("amount", [2.0, 3e-4])
def test_the_layer_with_the_changed_weight_is_named(index: int, amount: float) -> None:
    found = locate(network(), fetch(faulty(index, amount)), fetch(network()), against="twin", bound=1e-5)
    assert found is not None
    layer, side = divmod(index, 2)
    assert found.tensor == f"{'ab'[side]}{layer}"
    assert found.node == f"layers.{layer}.{('left', 'right')[side]}/MatMul"
    assert found.module == f"layers.{layer}.{('left', 'right')[side]}"
    assert found.error_before == 0
    assert found.sharp


def test_only_what_both_sides_have_is_compared() -> None:
    comparable = [f"rb{i}" for i in range(DEPTH)]
    runs: list[int] = []
    twin = fetch(network(), runs)
    found = locate(network(), fetch(faulty(7, 1.0)), twin, against="twin", bound=1e-5, comparable=comparable)
    assert found is not None
    assert found.tensor == "rb3"


def test_two_searches_are_enough() -> None:
    runs: list[int] = []
    locate(network(), fetch(faulty(13, 1.0)), fetch(network(), runs), against="twin", bound=1e-5)
    assert len(runs) == 2
    assert sum(runs) < 40  # of 70 tensors


def test_equal_graphs_have_no_divergence() -> None:
    assert locate(network(), fetch(network()), fetch(network()), against="twin", bound=1e-5) is None


def test_rounding_that_grows_with_depth_is_told_from_a_fault() -> None:
    """Every layer a little off: the error passes the bound somewhere, without a jump."""
    weights = [w * np.float32(1 + 2e-6) for w in WEIGHTS]
    found = locate(network(), fetch(network(weights)), fetch(network()), against="twin", bound=4e-6, rounding=5e-7)
    assert found is not None
    assert not found.sharp
    assert "gradually" in found.describe()


def test_what_is_not_finite_diverges() -> None:
    found = locate(network(), fetch(faulty(8, np.inf)), fetch(network()), against="twin", bound=1e-5)
    assert found is not None
    assert found.tensor == "a4"
    assert found.error is None
    assert "not finite" in found.describe()


def test_tensor_error_is_relative_to_the_largest_value() -> None:
    want = np.array([100.0, 1.0])
    assert tensor_error(np.add(want, [0, 1.0]), want) == pytest.approx(0.01)
    assert tensor_error(np.zeros(2), np.zeros(2)) == 0
    assert tensor_error(np.array([np.nan, 1.0]), want) is None
    assert tensor_error(np.zeros(3), want) is None
