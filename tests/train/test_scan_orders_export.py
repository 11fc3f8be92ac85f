"""Scan orders in exported graphs: constants where sizes are fixed, the same walks where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgemamba.train.models.padding import round_up
from edgemamba.train.scan_orders import Size, get_order, list_orders, scan_order

# Every order in its own directions, and those of one direction in four, as most models ask for them.
CASES: list[tuple[str, int | None]] = [(order.name, None) for order in list_orders()] + [
    (order.name, 4) for order in list_orders() if order.directions == 1 and order.axes == 2
]
IDS = [name if directions is None else f"{name}x{directions}" for name, directions in CASES]
# Depth, height and width: even and odd, flat and tall, and one with many positions.
SIZES = [(2, 4, 6), (1, 7, 3), (3, 3, 13), (1, 33, 50)]


def made(name: str, directions: int | None, size: Size, device: torch.device | None = None) -> Tensor:
    """The order over a grid of about that size, which is padded as the models pad it."""
    depth, height, width = size
    info = get_order(name)
    if info.axes == 2:
        grid: Size = (round_up(height, info.multiple), round_up(width, info.multiple))
    else:
        grid = (4 * depth, height, width)  # for "slices4"
    return scan_order(name, grid, device, directions)


class AllOrders(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [made(name, directions, x.shape, x.device) for name, directions in CASES]


class FixedOrders(nn.Module):
    """Reads its input in every order of one size."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.index_select(0, made(name, directions, self.size).flatten()) for name, directions in CASES]


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    # From three on: a grid whose padded form is a single position would be a case of its own.
    least = (1, 3, 3)
    axes = {i: torch.export.Dim(name, min=least[i], max=64) for i, name in enumerate(("depth", "height", "width"))}
    return torch.export.export(AllOrders(), (torch.zeros(2, 4, 6),), dynamic_shapes={"x": axes})


@pytest.fixture(scope="module")
def run(program: torch.export.ExportedProgram) -> Callable[[Size], list[np.ndarray]]:
    """The orders that ONNX Runtime makes for a size, of one graph."""
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    model = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    made_for = {size: session.run(None, {session.get_inputs()[0].name: np.zeros(size, np.float32)}) for size in SIZES}
    return made_for.__getitem__


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_exported_program_serves_every_size(program: torch.export.ExportedProgram, size: Size) -> None:
    """Of those with a sort too, which for fixed sizes is NumPy's and here PyTorch's."""
    for (name, directions), order in zip(CASES, program.module()(torch.zeros(*size)), strict=True):
        assert torch.equal(order, made(name, directions, size)), (name, directions)


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_one_onnx_graph_serves_every_size(run: Callable[[Size], list[np.ndarray]], index: int) -> None:
    for size in SIZES:
        order = run(size)[index]
        assert order.dtype == np.int32
        np.testing.assert_array_equal(order, made(*CASES[index], size).numpy())


def test_orders_of_fixed_sizes_are_constants_of_the_graph() -> None:
    size = (3, 28, 20)
    x = torch.arange(4 * math.prod(size), dtype=torch.float32)
    exported = torch.onnx.export(FixedOrders(size).eval(), (x,), dynamo=True, verbose=False)
    assert exported is not None
    graph = exported.model_proto.graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {initializer.name for initializer in graph.initializer}
    assert len(graph.output) == len(CASES)
    for (name, directions), output in zip(CASES, graph.output, strict=True):
        node = made_by[output.name]
        assert node.op_type == "Gather", (name, directions)
        indices = node.input[1]
        while indices in made_by and made_by[indices].op_type in ("Cast", "Reshape"):  # of this test's index_select
            indices = made_by[indices].input[0]
        assert indices in constants or made_by[indices].op_type == "Constant", (name, directions)
    onnx.checker.check_model(exported.model_proto)


def test_an_order_made_while_tracing_does_not_leak() -> None:
    class Cross(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scan_order("cross", x.shape, x.device)

    torch.export.export(Cross(), (torch.zeros(5, 6),))
    assert type(scan_order("cross", (5, 6))) is Tensor
