"""Weights beside the graph instead of in it, where one protobuf message cannot hold them (2 GiB).

The format is ONNX's own (``TensorProto.external_data``): one file for all tensors, each with its offset and length. Every runtime
that reads the graph from its folder finds it there.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgemamba.runtime.bundle import MODEL_DATA

#: protobuf's limit for one message, less a margin for names and nodes.
SINGLE_FILE_LIMIT = 2**31 - 2**24
# Smaller tensors stay in the graph: shapes and constants, which runtimes read while they load it.
_LEAST_BYTES = 1024
# What memory-mapped files ask for where a tensor is used in place.
_ALIGNMENT = 4096


def weight_bytes(graph: onnx.ModelProto) -> int:
    """Bytes of all initializers in a graph."""
    return sum(len(tensor.raw_data) for tensor in graph.graph.initializer)


def move_weights_out(graph: onnx.ModelProto, folder: Path) -> None:
    """Write the larger initializers into ``folder / MODEL_DATA`` and leave references to them in the graph (in place)."""
    with (folder / MODEL_DATA).open("wb") as file:
        for tensor in graph.graph.initializer:
            if len(tensor.raw_data) < _LEAST_BYTES:
                continue
            file.seek(-file.tell() % _ALIGNMENT, 1)
            place = {"location": MODEL_DATA, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
