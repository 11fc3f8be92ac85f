"""Graph clean-up after the exporter's own: what it leaves that costs time on a device.

Each rewrite keeps the arithmetic (up to the rounding of one operation); none is specific to a backbone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import optimizer

# Elements. The exporter's own limits are 8192 in and 262144 out, less than one layer's A.
_FOLD_LIMIT = 2**28
# Folding these makes a large constant out of a small one.
_GROWING = frozenset(("Expand", "ConstantOfShape", "Tile"))
_GROWTH_LIMIT = 2**16


def simplify(model: ir.Model) -> None:
    """Fold constants of any size, merge scalings into weights, and write what is left in fewer nodes."""
    # What the exporter's constant folding leaves out: nodes with several outputs, and results of more than 512 x 512.
    for node in list(model.graph):
        _fold_split(model.graph, node)
    optimizer.fold_constants_ir(
        model,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
        should_fold=_should_fold,
        onnx_shape_inference=False,
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for rule in (_reciprocal_root_to_division, _square_to_power, _scaling_into_weight, _stack_to_concat):
        for node in list(model.graph):
            rule(model.graph, node)
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _should_fold(node: ir.Node) -> bool | None:
    """Leave to the default rules all but constants that would grow."""
    if node.op_type not in _GROWING:
        return None
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return None
    return None if int(np.prod(shape.numpy())) <= _GROWTH_LIMIT else False


def _scalar(value: ir.Value | None) -> float | None:
    """The value of a constant with one element."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None where several do or where it leaves the graph."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def _replace(old: ir.Node, new: ir.Node) -> None:
    """Put ``new`` in the place of ``old``, under its names and metadata."""
    value, graph = old.outputs[0], old.graph
    assert graph is not None
    result = new.outputs[0]
    result.name, result.type, result.shape = value.name, value.type, value.shape
    new.metadata_props.update(old.metadata_props)
    graph.insert_before(old, new)
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer; the one of that name, where there is one already."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _fold_split(graph: ir.Graph, node: ir.Node) -> None:
    """Split a constant (a weight whose parts are used apart) now."""
    source = node.inputs[0] if node.op_type == "Split" else None
    tensor = None if source is None else ir.convenience.get_const_tensor(source)
    if tensor is None or any(value.is_graph_output() for value in node.outputs):
        return
    sizes = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    count = len(node.outputs)
    extent = tensor.numpy().shape[axis]
    even = -(-extent // count)  # the last part is smaller where it does not divide
    parts = np.cumsum(sizes.numpy())[:-1] if sizes is not None else np.arange(even, extent, even)
    for value, array in zip(node.outputs, np.split(tensor.numpy(), parts, axis), strict=True):
        part = _constant(graph, f"{value.name}_constant", np.ascontiguousarray(array))
        value.replace_all_uses_with(part)
    graph.remove(node, safe=True)


def _reciprocal_root_to_division(graph: ir.Graph, node: ir.Node) -> None:
    """x * Reciprocal(Sqrt(v)) -> x / Sqrt(v): the form that ONNX Runtime and TensorRT fuse into one normalisation."""
    if node.op_type != "Mul":
        return
    for position, factor in enumerate(node.inputs):
        producer = factor.producer() if factor is not None else None
        if (
            producer is not None
            and producer.op_type == "Reciprocal"
            and factor is not None
            and _only_use(factor) is node
        ):
            root = producer.inputs[0]
            source = root.producer() if root is not None else None
            if source is not None and source.op_type == "Sqrt":
                _replace(node, ir.node("Div", [node.inputs[1 - position], root]))
                return


def _square_to_power(graph: ir.Graph, node: ir.Node) -> None:
    """Mul(x, x) -> Pow(x, 2) where a mean follows: the other half of the form that is fused."""
    if node.op_type != "Mul" or node.inputs[0] is not node.inputs[1]:
        return
    consumer = _only_use(node.outputs[0])
    if consumer is not None and consumer.op_type == "ReduceMean":
        two = _constant(graph, "exponent_two", np.array(2.0, np.float32))
        _replace(node, ir.node("Pow", [node.inputs[0], two]))


def _stack_to_concat(graph: ir.Graph, node: ir.Node) -> None:
    """Stacking on the axis before the last, (..., D) k times to (..., k, D), is concatenation on the last and a view.

    One copy, as before, but k fewer nodes; the view costs nothing.
    """
    if node.op_type != "Concat":
        return
    sources = [value.producer() if value is not None else None for value in node.inputs]
    shape = node.outputs[0].shape
    if shape is None or any(source is None or source.op_type != "Unsqueeze" for source in sources):
        return
    rank, axis = len(shape), node.attributes["axis"].as_int() % len(shape)
    originals = [source.inputs[0] for source in sources if source is not None]
    extents = {original.shape[-1] if original is not None and original.shape else None for original in originals}
    axes = [source.inputs[1] for source in sources if source is not None]
    alike = all(_scalar(value) in (axis, axis - rank) for value in axes)
    if not alike or axis != rank - 2 or len(extents) != 1 or not isinstance(extent := extents.pop(), int):
        return
    joined = ir.node("Concat", originals, {"axis": rank - 2})
    value, count = joined.outputs[0], len(originals)
    value.name = f"{node.outputs[0].name}_joined"
    value.type, value.shape = node.outputs[0].type, ir.Shape([*shape[: rank - 2], count * extent])
    joined.metadata_props.update(node.metadata_props)
    graph.insert_before(node, joined)
    kept = [0] * (rank - 2)  # 0: the extent of the input
    target = _constant(graph, f"stack_{rank}_{count}_{extent}", np.array([*kept, count, extent], np.int64))
    _replace(node, ir.node("Reshape", [value, target]))


def _scaling_into_weight(graph: ir.Graph, node: ir.Node) -> None:
    """(x * c) @ W -> x @ (W * c), and the same for x / c: Vim halves the sum of its two directions this way."""
    if node.op_type not in ("Mul", "Div"):
        return
    position = 1 if _scalar(node.inputs[1]) is not None else 0
    factor, activation = _scalar(node.inputs[position]), node.inputs[1 - position]
    if factor is None or activation is None or (node.op_type == "Div" and (position == 0 or factor == 0)):
        return
    product = _only_use(node.outputs[0])
    if product is None or product.op_type not in ("MatMul", "Gemm") or product.inputs[0] is not node.outputs[0]:
        return
    weight = product.inputs[1]
    tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
    if weight is None or tensor is None or not weight.is_initializer() or _only_use(weight) is not product:
        return
    array = tensor.numpy()
    scaled = (array / factor if node.op_type == "Div" else array * factor).astype(array.dtype)
    weight.const_value = ir.tensor(scaled, name=weight.name)
    product.replace_input_with(0, activation)
    graph.remove(node, safe=True)
