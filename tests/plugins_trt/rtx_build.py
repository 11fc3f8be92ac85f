"""Run in a process of its own by test_rtx.py: parse an ONNX file with TensorRT-RTX and build an engine, on a CPU.

    python rtx_build.py MODEL.onnx PLUGIN.so|PLUGIN_autoload.so|- [SM]

Prints one JSON object: whether it parsed, its plugin layers, the engine's size, TensorRT's errors.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class Logger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.lines.append(message)


def main(model: str, plugin: str, sm: str = "SM86") -> None:
    logger = Logger()
    if plugin.endswith("_autoload.so"):
        ctypes.CDLL(plugin)
    elif plugin != "-":
        trt.get_plugin_registry().load_library(plugin)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(Path(model).read_bytes())
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    answer: dict[str, Any] = {
        "parsed": parsed,
        "layers": len(layers),
        "plugins": [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3],
        "engine": 0,
    }
    if parsed:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            least, usual, most = ([size if extent < 0 else extent for extent in tensor.shape] for size in (1, 2, 8))
            profile.set_shape(tensor.name, least, usual, most)
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        answer["engine"] = 0 if engine is None else engine.nbytes
        # A field of the plugin's that only engines have; the function's layers have the operator's name as well.
        answer["plugin_in_engine"] = engine is not None and b"workspace_bytes" in bytes(engine)
    answer["errors"] = [*(parser.get_error(i).desc() for i in range(parser.num_errors)), *logger.lines]
    print(json.dumps(answer))


main(*sys.argv[1:])
