"""Operations on ONNX models that carry the selective scan: its function added, removed or expanded in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper, inliner

from edgemamba.export.function import selective_scan_function
from edgemamba.runtime.operator import (
    DOMAIN,
    INPUT_NAMES,
    OP_TYPE,
    OP_VERSION,
    OUTPUT_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
)

# The IR version that goes with opset 20, read by ONNX Runtime from 1.17 on.
IR_VERSION = 10


def opset_version(model: onnx.ModelProto, domain: str = "") -> int | None:
    """The version of a domain that the model imports; None where it does not."""
    names = {domain, "ai.onnx"} if domain == "" else {domain}
    return next((entry.version for entry in model.opset_import if entry.domain in names), None)


def attach_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that carries the selective scan's function, in the model's own opset, exactly once.

    Raises:
        ValueError: the model imports no standard opset, or one the function is not written for.
    """
    opset = opset_version(model)
    if opset is None:
        raise ValueError("the model imports no version of the standard ONNX opset")
    copy = strip_functions(model)
    copy.functions.append(selective_scan_function(opset))
    if opset_version(copy, DOMAIN) is None:
        copy.opset_import.append(helper.make_opsetid(DOMAIN, OP_VERSION))
    return copy


def strip_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the selective scan's function; its nodes stay.

    For parsers that prefer a function to a plugin of the same name (TensorRT 9.0 to 10.6), and for runtimes that are sure
    to have a kernel.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [function for function in copy.functions if (function.domain, function.name) != (DOMAIN, OP_TYPE)]
    del copy.functions[:]
    copy.functions.extend(kept)
    return copy


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in standard ONNX alone: every node of a function of the model is replaced by the function's body."""
    inlined = inliner.inline_local_functions(model)
    used = {node.domain for node in inlined.graph.node}
    imports = [entry for entry in inlined.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    del inlined.opset_import[:]
    inlined.opset_import.extend(imports)
    return inlined


def selective_scan_node(inputs: Sequence[str], output: str, *, delta_softplus: bool = True) -> onnx.NodeProto:
    """A SelectiveScan node with all the attributes that the runtimes look at."""
    return helper.make_node(
        OP_TYPE,
        list(inputs),
        [output],
        domain=DOMAIN,
        delta_softplus=int(delta_softplus),
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=PLUGIN_NAMESPACE,
    )


def selective_scan_model(
    dtype: int = TensorProto.FLOAT,
    *,
    delta_softplus: bool = True,
    extents: Mapping[str, int] | None = None,
    opset: int = 20,
    function: bool = True,
) -> onnx.ModelProto:
    """A model of one SelectiveScan node, for tests, benchmarks and bug reports.

    Args:
        dtype: T, a number of ``TensorProto.DataType``.
        delta_softplus: the node's attribute.
        extents: numbers for any of the dimensions batch, P, Gu, G, D, N, S; those not given stay symbolic.
        opset: of the model.
        function: whether it carries the function.
    """
    size = {name: name for name in ("batch", "P", "Gu", "G", "D", "N", "S")} | dict(extents or {})
    shapes = {
        "u": (dtype, ("batch", "P", "Gu", "D")),
        "delta": (dtype, ("batch", "P", "G", "D")),
        "A": (TensorProto.FLOAT, ("G", "D", "N")),
        "B": (dtype, ("batch", "P", "G", "N")),
        "C": (dtype, ("batch", "P", "G", "N")),
        "D": (TensorProto.FLOAT, ("G", "D")),
        "delta_bias": (TensorProto.FLOAT, ("G", "D")),
        "order": (TensorProto.INT32, ("G", "S")),
    }
    inputs = [
        helper.make_tensor_value_info(name, shapes[name][0], [size[extent] for extent in shapes[name][1]])
        for name in INPUT_NAMES
    ]
    output = helper.make_tensor_value_info(OUTPUT_NAME, dtype, [size["batch"], size["P"], size["D"]])
    node = selective_scan_node(INPUT_NAMES, OUTPUT_NAME, delta_softplus=delta_softplus)
    model = helper.make_model(
        helper.make_graph([node], "selective_scan", inputs, [output]),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OP_VERSION)],
        ir_version=IR_VERSION,
    )
    return attach_function(model) if function else model
