"""Graph clean-up after the exporter's own: what it leaves that costs time on a device.

Each rewrite keeps the arithmetic (up to the rounding of one operation); none is specific to a backbone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer
from onnxscript.rewriter import rewrite

# Elements. The exporter's own limits are 8192 in and 262144 out, less than one layer's A.
_FOLD_LIMIT = 2**28
# Folding these makes a large constant out of a small one.
_GROWING = frozenset(("Expand", "ConstantOfShape", "Tile"))
_GROWTH_LIMIT = 2**16


def simplify(model: ir.Model) -> None:
    """Fold constants of any size, merge scalings into weights, and write 1 / sqrt as normalisations are usually written."""
    optimizer.optimize_ir(
        model,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
        should_fold=_should_fold,
        onnx_shape_inference=False,
    )
    for node in list(model.graph):
        _reciprocal_root_to_division(node)
        _square_root_of_square(node)
    for node in list(model.graph):
        _scaling_into_weight(model.graph, node)
    rewrite(model)
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


def _reciprocal_root_to_division(node: ir.Node) -> None:
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


def _square_root_of_square(node: ir.Node) -> None:
    """Mul(x, x) -> Pow(x, 2) where a mean follows: the other half of the form that is fused."""
    if node.op_type != "Mul" or node.inputs[0] is not node.inputs[1]:
        return
    consumer = _only_use(node.outputs[0])
    if consumer is None or consumer.op_type != "ReduceMean":
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = "exponent_two"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(2.0, np.float32), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        )
    _replace(node, ir.node("Pow", [node.inputs[0], graph.initializers[name]]))


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
