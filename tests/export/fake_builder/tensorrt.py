"""A stand-in for TensorRT's builder, imported by the worker of test_build_fake_tensorrt.py in TensorRT's place: it writes down
the calls that are made of it, as JSON into $FAKE_TENSORRT_LOG, and returns an engine of a few bytes.

$FAKE_TENSORRT: JSON; ``version``, and ``fault``: ``parser``, ``plugin``, ``function``, ``abort`` or ``hang``.
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import onnx

_SETTINGS = json.loads(os.environ["FAKE_TENSORRT"])
_FAULT = _SETTINGS.get("fault")
__version__: str = _SETTINGS["version"]
_LOG: dict[str, Any] = {"flags": [], "cleared": []}


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0 if __version__.startswith("11") else 1


class BuilderFlag(IntEnum):
    FP16 = 0
    TF32 = 7
    BF16 = 17


class LayerType(IntEnum):
    CONSTANT = 1
    PLUGIN_V3 = 2


class ILogger:
    def __init__(self) -> None: ...

    def log(self, severity: int, message: str) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


class _Registry:
    def load_library(self, path: str) -> object | None:
        _LOG["plugin"] = path
        return None if _FAULT == "plugin" else object()


def get_plugin_registry() -> _Registry:
    return _Registry()


class _Layer:
    def __init__(self, kind: LayerType) -> None:
        self.type = kind


class _Network:
    layers: tuple[_Layer, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class _ParserError:
    def node_name(self) -> str:
        return "head"

    def node_operator(self) -> str:
        return "Gemm"

    def desc(self) -> str:
        return "not\nsupported (In parseNode at parser.cpp:11)"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path)
        _LOG["functions"] = len(model.functions)
        scans = [node for node in model.graph.node if node.op_type == "SelectiveScan"]
        kind = LayerType.CONSTANT if _FAULT == "function" else LayerType.PLUGIN_V3
        self.network.layers = tuple(_Layer(kind) for _ in scans)
        return _FAULT != "parser"

    def get_error(self, index: int) -> _ParserError:
        return _ParserError()


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed;"


class _Config:
    progress_monitor: Any = None

    def set_flag(self, flag: BuilderFlag) -> None:
        _LOG["flags"].append(flag.name)

    def clear_flag(self, flag: BuilderFlag) -> None:
        _LOG["cleared"].append(flag.name)

    def add_optimization_profile(self, profile: _Profile) -> int:
        return 0

    def create_timing_cache(self, data: bytes) -> _Cache:
        _LOG["cache"] = data.decode()
        return _Cache(data)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        return not cache.data.startswith(b"another device")


class _Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        _LOG["shapes"] = shapes


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> _Network:
        _LOG["network"] = flags
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> memoryview:
        if _FAULT == "abort":
            os.abort()
        config.progress_monitor.phase_start("timing tactics", None, 2)
        if _FAULT == "hang":
            time.sleep(600)
        config.progress_monitor.step_complete("timing tactics", 0)
        config.progress_monitor.phase_finish("timing tactics")
        Path(os.environ["FAKE_TENSORRT_LOG"]).write_text(json.dumps(_LOG))
        return memoryview(b"engine")
