"""Sorts of constants are done at export: the way back from a walk through a volume is an argsort of its order.

Left in the graph, every inference would sort as many numbers as the map has voxels, and TensorRT's TopK takes no more than 3840.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def fold_sorts(model: ir.Model) -> int:
    """Replace, in place, each TopK that sorts the whole of a one-dimensional constant by its results.

    Returns:
        How many.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type == "TopK" and _fold(model.graph, node):
            count += 1
    return count


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
    if len(tensors) != 2 or tensors[0] is None or tensors[1] is None:
        return False
    values, taken = tensors[0].numpy(), int(tensors[1].numpy().reshape(()))
    if values.ndim != 1 or taken != values.size or not np.issubdtype(values.dtype, np.integer):
        return False
    largest = node.attributes["largest"].as_int() if "largest" in node.attributes else 1
    # Of equal values the one with the smaller index comes first (ONNX), as in a stable sort; ~x turns the order of integers.
    index = np.argsort(~values if largest else values, kind="stable")
    for old, array in zip(node.outputs, (values[index], index.astype(np.int64)), strict=True):
        tensor = ir.tensor(array, name=f"{old.name}_folded")
        folded = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        if old.uses():
            graph.register_initializer(folded)
            old.replace_all_uses_with(folded)
    graph.remove(node, safe=True)
    return True
