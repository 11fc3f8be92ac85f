"""Parses and builds, in a process of its own: what aborts inside the library ends this process and nothing else.

    python -m edgemamba.export.building.worker < request.json

Standard output carries one JSON object a line: ``{"phase": [name, done, total]}`` as the build proceeds, then one of
``{"built": {...}}`` and ``{"error": "..."}``. Everything that libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from edgemamba.runtime.engines.tensorrt_library import tidy
from edgemamba.runtime.whole_files import write_whole

# ILogger's severities: internal error, error, warning.
_INTERNAL_ERROR, _ERROR, _WARNING = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """What the worker is told.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        model: the ONNX file.
        engine: where the engine is written.
        input: name of the graph's input.
        profile: its smallest, best and largest shape.
        typing: ``weak``, ``strong`` or ``implied``; see :class:`~edgemamba.export.building.dialects.Dialect`.
        precision: of the arithmetic; with ``weak`` typing it sets builder flags.
        plugin: the plugin library; empty: none is loaded.
        scans: how many layers must be that plugin.
        sm: compute capabilities (TensorRT-RTX); empty: the library's choice.
        timing_cache: file that is read where it exists, and written; empty: none.
    """

    module: str
    model: str
    engine: str
    input: str
    profile: tuple[tuple[int, ...], ...]
    typing: str
    precision: str
    plugin: str = ""
    scans: int = 0
    sm: tuple[int, ...] = ()
    timing_cache: str = ""

    def to_json(self) -> str:
        """For the worker's standard input."""
        return json.dumps(asdict(self))


class BuildError(Exception):
    """What went wrong, in one line."""


def build(request: Request, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Build the engine and write it.

    Returns:
        ``version``, ``layers``, ``plugins`` (layers that are plugins), ``bytes`` and ``seconds``.

    Raises:
        BuildError: the library refuses; its own reason is given.
    """
    trt = importlib.import_module(request.module)
    logger = _logger(trt)
    started = time.perf_counter()
    if request.plugin:
        _load_plugin(trt, request.plugin, logger)
    builder = trt.Builder(logger)
    if builder is None or not hasattr(builder, "create_network"):
        raise BuildError(logger.reason("the builder cannot be made"))
    network = builder.create_network(_network_flags(trt, request.typing))
    emit({"phase": ["parsing the graph", 0, 0]})
    _parse(trt, network, request.model, logger)
    plugins = sum(network.get_layer(i).type == trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
    if request.plugin and plugins != request.scans:
        raise BuildError(f"of {request.scans} scans only {plugins} became plugins; the parser took the function")
    config = _config(trt, builder, request)
    profile = builder.create_optimization_profile()
    profile.set_shape(request.input, *request.profile)
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(logger.reason("the shapes are refused"))
    cache = _read_cache(config, request.timing_cache)
    monitor = _monitor(trt, emit)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(logger.reason("the build failed"))
    Path(request.engine).write_bytes(plan)
    if cache is not None:
        write_whole(Path(request.timing_cache), bytes(cache.serialize()))
    return {
        "version": trt.__version__,
        "layers": network.num_layers,
        "plugins": plugins,
        "bytes": plan.nbytes,
        "seconds": time.perf_counter() - started,
    }


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors, and shows them and warnings on standard error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= _ERROR:
                self.errors.append(message)
            # A function's inner nodes have the same names in each of its calls: hundreds of these, all harmless.
            if level <= _WARNING and "already exists, the output tensors" not in message:
                print(message, file=sys.stderr, flush=True)

        def reason(self, otherwise: str) -> str:
            return tidy(self.errors[0]) if self.errors else otherwise

    return Logger()


def _load_plugin(trt: Any, path: str, logger: Any) -> None:
    if trt.get_plugin_registry().load_library(path) is None:
        raise BuildError(logger.reason(f"the plugin {path} was not accepted by {trt.__name__} {trt.__version__}"))


def _network_flags(trt: Any, typing: str) -> int:
    # Looked up by name: the bit is another one in TensorRT 11.
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typing == "strong" else 0


def _parse(trt: Any, network: Any, model: str, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(model):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        raise BuildError(logger.reason("the parser refuses the graph"))
    error = errors[0]
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    raise BuildError(f"the parser refuses the graph: {node}{tidy(error.desc())}")


def _config(trt: Any, builder: Any, request: Request) -> Any:
    config = builder.create_builder_config()
    if request.typing == "weak" and request.precision != "fp32":
        config.set_flag(getattr(trt.BuilderFlag, request.precision.upper()))
    if request.precision == "fp32":
        # TF32 keeps ten bits of the mantissa: past what `edgemamba verify` allows a float32 engine.
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.sm:
        config.num_compute_capabilities = len(request.sm)
        for index, target in enumerate(request.sm):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), index)
    return config


def _read_cache(config: Any, path: str) -> Any:
    if not path:
        return None
    file = Path(path)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BuildError(f"the timing cache {path} is of another TensorRT or GPU; name a new file")
    return cache


def _monitor(trt: Any, emit: Callable[[dict[str, Any]], None]) -> Any:
    """Reports the outermost phases; None where the library has no such interface."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest; of those inside others only the names are shown, of the outermost the steps too."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            emit({"phase": [phase_name, 0, num_steps]})

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.steps.get(phase_name, 0)
            if total and (step + 1) * 20 // total != step * 20 // total:
                emit({"phase": [phase_name, step + 1, total]})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def main() -> int:
    """Read the request, build, report."""
    warnings.simplefilter("ignore", DeprecationWarning)  # what newer releases no longer need, older ones do
    channel = _take_stdout()

    def emit(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    try:
        emit({"built": build(Request(**json.loads(sys.stdin.read())), emit)})
    except (BuildError, ImportError, OSError) as error:
        emit({"error": " ".join(str(error).split())})
        return 1
    except Exception as error:  # the bindings raise whatever their C++ did; a traceback would hide the reason
        emit({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return 1
    return 0


def _take_stdout() -> TextIO:
    """Standard output for the events alone: what libraries print into it goes to standard error from here on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    sys.exit(main())
