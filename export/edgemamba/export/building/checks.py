"""What a graph must be for a build, said in terms of the graph: parsers say it later and in their own terms, or crash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgemamba.runtime.errors import BundleError, ExportError
from edgemamba.runtime.operator import DOMAIN, INPUT_NAMES, OP_TYPE

# What parsers look a plugin up by, and what the plugin reads.
_ATTRIBUTES = ("delta_softplus", "plugin_version", "plugin_namespace")
#: EM_CUDA_MAX_STATES of scan_cuda.h.
MOST_STATES = 64
_DTYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_VALUES = ("u", "delta", "B", "C")


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of a bundle, without weights that lie beside it.

    Raises:
        BundleError: the file is not an ONNX model.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path} is not a readable ONNX model: {error}") from None


def check_graph(model: onnx.ModelProto, path: Path, *, plugin: bool) -> int:
    """Hold every SelectiveScan node against what the plugin, or the function, takes.

    Args:
        model: the graph.
        path: where it was read from; weights beside it are found there.
        plugin: whether the nodes are to run in the plugin.

    Returns:
        The number of the nodes.

    Raises:
        ExportError: a node lacks an attribute or an input, has a dtype or a number of states that cannot be built, or a
            constant order that is not one; or there is no function and no plugin either.
    """
    facts = _Facts(model.graph, path.parent)
    count = 0
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, OP_TYPE):
            continue
        count += 1
        try:
            _check_node(node, facts)
        except _ProblemError as error:
            raise ExportError(f"{path}: node {node.name or node.output[0]} ({OP_TYPE}): {error}") from None
    has_function = any((function.domain, function.name) == (DOMAIN, OP_TYPE) for function in model.functions)
    if count and not plugin and not has_function:
        raise ExportError(f"{path}: --no-plugin needs the function of {OP_TYPE} in the file, and it is not there")
    return count


class _ProblemError(Exception):
    """One line about a node, to which its name is added."""


def _check_node(node: onnx.NodeProto, facts: _Facts) -> None:
    present = {attribute.name for attribute in node.attribute}
    for name in _ATTRIBUTES:
        if name not in present:
            raise _ProblemError(f"attribute {name} is missing; export the bundle again with this edgemamba")
    if len(node.input) != len(INPUT_NAMES) or not all(node.input):
        raise _ProblemError(f"{len([name for name in node.input if name])} inputs, expected {len(INPUT_NAMES)}")
    inputs = dict(zip(INPUT_NAMES, node.input, strict=True))
    for name in _VALUES:
        dtype = facts.dtype(inputs[name])
        if dtype is not None and dtype not in _DTYPES:
            found = TensorProto.DataType.Name(dtype).lower()
            raise _ProblemError(f"{name} is {found}; float, float16 or bfloat16 can be built")
    states = facts.extent(inputs["A"], 2)
    if states is not None and not 1 <= states <= MOST_STATES:
        raise _ProblemError(f"N (d_state) is {states}; 1 to {MOST_STATES} can be built")
    order = facts.constant(inputs["order"])
    if order is not None:
        _check_order(order, facts.extent(inputs["delta"], 1) or facts.extent(inputs["u"], 1))


def _check_order(order: NDArray[np.generic], positions: int | None) -> None:
    """``positions``: None where the graph leaves it open; then only what no number of positions allows is refused."""
    if order.dtype != np.int32 or order.ndim != 2:
        raise _ProblemError(f"order is {order.dtype} {order.shape}, expected int32 (directions, steps)")
    for direction, row in enumerate(order):
        outside = row[(row < 0) | (row >= (positions or 2**31))]
        if outside.size:
            of = f"0..{positions - 1}" if positions else "the positions"
            raise _ProblemError(f"order visits position {outside[0]} in direction {direction}, which is outside {of}")
        if len(np.unique(row)) != len(row):
            raise _ProblemError(f"order visits a position twice in direction {direction}")


class _Facts:
    """What a graph says of its values, as far as it says it."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self.folder = folder
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
        self.values = {value.name: value.type.tensor_type for value in _typed(graph)}

    def dtype(self, name: str) -> int | None:
        if name in self.initializers:
            return int(self.initializers[name].data_type)
        found = self.values[name].elem_type if name in self.values else 0
        return int(found) or None

    def extent(self, name: str, axis: int) -> int | None:
        if name in self.initializers:
            dims = list(self.initializers[name].dims)
            return dims[axis] if axis < len(dims) else None
        if name not in self.values or not self.values[name].HasField("shape"):
            return None
        dims = self.values[name].shape.dim
        return dims[axis].dim_value if axis < len(dims) and dims[axis].HasField("dim_value") else None

    def constant(self, name: str) -> NDArray[np.generic] | None:
        if name in self.initializers:
            tensor = self.initializers[name]
        elif name in self.constants and self.constants[name].attribute[0].name == "value":
            tensor = self.constants[name].attribute[0].t
        else:
            return None
        try:
            array: NDArray[np.generic] = numpy_helper.to_array(tensor, base_dir=str(self.folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise _ProblemError(f"the values of {name} cannot be read: {' '.join(str(error).split())}") from None
        return array


def _typed(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for values in (graph.value_info, graph.input, graph.output):
        yield from values


def version_numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version such as ``10.3.0`` or ``1.7.1.116``."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:4])
