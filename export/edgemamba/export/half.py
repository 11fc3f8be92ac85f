"""From a float32 graph to a float16 one, with float32 kept where a small exponent or a short sum would cost accuracy.

What stays float32:

- the preprocessing, until the pixels are normalised, and the logits' last cast;
- ``A``, ``D`` and ``delta_bias`` of SelectiveScan (its state and arithmetic are float32 in every implementation);
- normalisation: everything inside a LayerNorm or RMSNorm module, from the statistics to the product with the weight
  (BatchNorm has constant statistics: it becomes one product and one sum, of constants that are computed in float64);
- sums over many positions: mean pooling, reductions, softmax; exponentials and logarithms;
- the residual stream where it has a float32 consumer already (a sum that feeds a normalisation stays float32 between the two,
  as the official models' ``residual_in_fp32``).

Everything else (convolutions, matrix products, activations, gates, the scan's u, delta, B and C) is float16. Working on the graph
rather than on the module makes this one rule for all backbones, whatever casts their code does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemamba.export.layers import module_classes, scopes
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.operator import INPUT_NAMES, OP_TYPE

F16, F32 = ir.DataType.FLOAT16, ir.DataType.FLOAT

_FLOAT32_OPS = frozenset(
    (
        *("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "AveragePool"),
        *("Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
        *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"),
    )
)
_FLOAT32_INPUTS = {
    OP_TYPE: frozenset(INPUT_NAMES.index(name) for name in ("A", "D", "delta_bias")),
    "Resize": frozenset((1, 2)),  # ONNX wants roi and scales in float32
}
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: ir.Model) -> None:
    """Convert a graph in place.

    Raises:
        ExportError: a weight is outside float16's range, or the graph has control flow (the conversion does not enter it).
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "BatchNormalization":
            _spell_out_batch_norm(graph, node)
    converter = _Converter(graph)
    for node in list(graph):
        converter.convert(node)
    for position, output in enumerate(list(graph.outputs)):
        if output.dtype == F16:
            graph.outputs[position] = converter.output_in_float32(output)
    converter.drop_unused_initializers()


def _spell_out_batch_norm(graph: ir.Graph, node: ir.Node) -> None:
    """(x - mean) / sqrt(var + eps) * scale + bias -> x * a + b; the four vectors apart may not fit float16."""
    tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:5]]
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or any(tensor is None for tensor in tensors):
        raise ExportError("precision fp16: a batch norm's statistics are not constants")
    scale, bias, mean, var = (tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    a = scale / np.sqrt(var + epsilon)
    old, value = node.outputs[0], node.inputs[0]
    for op_type, array in (("Mul", a), ("Add", bias - mean * a)):
        name = f"{old.name}_{op_type.lower()}"
        tensor = ir.tensor(array.astype(np.float32).reshape(1, -1, *(1,) * (len(shape) - 2)), name=f"{name}_by")
        constant = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(F32), const_value=tensor
        )
        graph.register_initializer(constant)
        step = ir.node(op_type, [value, constant])
        step.metadata_props.update(node.metadata_props)
        value = step.outputs[0]
        value.name, value.type, value.shape = name, ir.TensorType(F32), shape
        graph.insert_before(node, step)
    assert value is not None
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


class _Converter:
    """Walks the graph in order; every value's dtype is known by the time its consumers are reached."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.originals = dict(graph.initializers)
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            raise ExportError(f"precision fp16: the graph has control flow ({node.op_type})")
        wide = self._stays_float32(node)
        if node.op_type in ("Cast", "CastLike"):
            return
        always = _FLOAT32_INPUTS.get(node.op_type, frozenset())
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype in (F16, F32):
                wanted = F32 if wide or position in always else F16
                node.replace_input_with(position, self._as(value, wanted, node))
        for value in node.outputs:
            if value.dtype == F32 and not wide:
                value.dtype = F16

    def _stays_float32(self, node: ir.Node) -> bool:
        classes = module_classes(node)
        in_norm = any("Norm" in name and "BatchNorm" not in name for name in classes)
        if node.op_type in _FLOAT32_OPS or in_norm or not scopes(node):
            return True
        # A sum of activations that a normalisation reads: the residual stream.
        return node.op_type == "Add" and any(
            any("Norm" in name and "BatchNorm" not in name for name in module_classes(use.node))
            for use in node.outputs[0].uses()
        )

    def _as(self, value: ir.Value, dtype: ir.DataType, consumer: ir.Node) -> ir.Value:
        """``value`` in the wanted type: itself, a converted weight, or a cast right before its first consumer."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.casts:
            if value.is_initializer():
                self.casts[key] = self._converted_weight(value)
            else:
                cast = ir.node("Cast", [value], {"to": int(dtype)})
                cast.outputs[0].name = f"{value.name}_{'fp16' if dtype == F16 else 'fp32'}"
                cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
                cast.metadata_props.update(consumer.metadata_props)
                self.graph.insert_before(consumer, cast)
                self.casts[key] = cast.outputs[0]
        return self.casts[key]

    def _converted_weight(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy()
        largest = float(np.abs(array).max(initial=0.0))
        if not largest <= _LARGEST:
            raise ExportError(
                f"precision fp16: {value.name} holds {largest:g}, beyond float16's {_LARGEST:g}; use fp32"
            )
        tensor = ir.tensor(array.astype(np.float16), name=f"{value.name}_fp16")
        converted = ir.Value(name=tensor.name, shape=value.shape, type=ir.TensorType(F16), const_value=tensor)
        self.graph.register_initializer(converted)
        return converted

    def output_in_float32(self, output: ir.Value) -> ir.Value:
        """Cast a graph output back, under its own name."""
        producer = output.producer()
        assert producer is not None
        name = output.name
        output.name = f"{name}_fp16"
        cast = ir.node("Cast", [output], {"to": int(F32)})
        cast.metadata_props.update(producer.metadata_props)
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, F32, output.shape
        self.graph.append(cast)
        return cast.outputs[0]

    def drop_unused_initializers(self) -> None:
        """Remove the float32 copies that nothing reads any more."""
        for name, value in self.originals.items():
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
