"""How the PyTorch operator is written into ONNX: ``torch.ops.edgemamba.selective_scan`` -> ``edgemamba::SelectiveScan``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxscript
import torch
from onnxscript import values

# Registers torch.ops.edgemamba.selective_scan.
import edgemamba.train.selective_scan  # noqa: F401
from edgemamba.runtime.operator import (
    DOMAIN,
    INPUT_NAMES,
    OP_TYPE,
    OP_VERSION,
    OUTPUT_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
)

# Values are of the model's precision; A, D and delta_bias are float32 whatever that is, because the state is.
_TYPE_OF = {"A": "tensor(float)", "D": "tensor(float)", "delta_bias": "tensor(float)", "order": "tensor(int32)"}


def selective_scan_schema() -> onnx.defs.OpSchema:
    """The operator's ONNX schema; a local object, registered nowhere (the exporter needs it to build nodes)."""
    parameter = onnx.defs.OpSchema.FormalParameter
    attribute = onnx.defs.OpSchema.Attribute
    return onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        OP_VERSION,
        doc="Selective scan over the positions of a channels-last map in the orders given as data.",
        inputs=[parameter(name, _TYPE_OF.get(name, "T")) for name in INPUT_NAMES],
        outputs=[parameter(OUTPUT_NAME, "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "the model's precision")],
        attributes=[
            attribute("delta_softplus", onnx.helper.make_attribute("delta_softplus", 1)),
            attribute("plugin_version", onnx.helper.make_attribute("plugin_version", PLUGIN_VERSION)),
            attribute("plugin_namespace", onnx.helper.make_attribute("plugin_namespace", PLUGIN_NAMESPACE)),
        ],
    )


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` of :func:`torch.onnx.export`.

    The plugin attributes are always written: TensorRT's parser needs them to prefer the plugin to the function body.
    """
    operator = values.Op(values.Opset(DOMAIN, OP_VERSION), OP_TYPE, selective_scan_schema())

    # No annotations on the tensors: the exporter would read them as type constraints of its own.
    def translate(u, delta, A, B, C, D, delta_bias, order, delta_softplus: bool = True):  # type: ignore[no-untyped-def]
        return operator(
            u,
            delta,
            A,
            B,
            C,
            D,
            delta_bias,
            order,
            delta_softplus=int(delta_softplus),
            plugin_version=PLUGIN_VERSION,
            plugin_namespace=PLUGIN_NAMESPACE,
        )

    return {torch.ops.edgemamba.selective_scan.default: translate}


def onnxscript_version() -> str:
    """The version of the package that translates the other operators."""
    return str(onnxscript.__version__)
