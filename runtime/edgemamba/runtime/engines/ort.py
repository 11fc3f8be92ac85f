"""ONNX Runtime on the CPU: with our kernel (``ort-cpu``), or stock, executing the function in the file (``ort-function``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import native
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.cpu import cpu_name, usable_threads
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.engines.tensors import check_input, empty_output
from edgemamba.runtime.errors import EngineError, MissingExtraError, NativeLibraryError
from edgemamba.runtime.extras import require

if TYPE_CHECKING:
    import onnxruntime

# Older releases fail on opset 20's functions or on the IR version that goes with it.
_OLDEST = (1, 19)
# Read by our RegisterCustomOps: ONNX Runtime lets an op use the session's threads but not count them.
_THREADS_OPTION = "edgemamba.intra_op_num_threads"
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
_FATAL_ONLY = 4


def make_session(
    model: str | Path | bytes,
    *,
    kernel: bool = True,
    threads: int = 0,
    spin: bool = False,
    profile: str | Path | None = None,
    folder: str | Path | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    provider_options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session, on the CPU unless told otherwise, set up for low latency.

    Every graph optimisation, one operator at a time on ``threads`` intra-op threads, memory reused between runs. ONNX Runtime
    logs nothing: what goes wrong is in the exceptions.

    Args:
        model: a file, or a serialised ModelProto.
        kernel: register our kernels. Without them the model must carry the function of ``SelectiveScan``.
        threads: intra-op threads; 0: :func:`edgemamba.runtime.cpu.usable_threads`.
        spin: let idle threads wait for work in a loop, as ONNX Runtime does by default. Vim-Tiny at 224 on two cores: 25
            instead of 29 ms where nothing else runs; but 120 to 170 instead of 45 to 110 ms where a decoder or another
            process shares the cores, as on a device they do.
        folder: of weights that are not in a serialised model; those of a file are beside it.
        providers: ONNX Runtime's execution providers, best first. It passes over those that do not load, without a word.
        provider_options: of the first of them.
        profile: where given, the prefix of a Chrome trace that ``session.end_profiling()`` writes.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        NativeLibraryError: ``kernel`` is true and the native library is missing or unusable.
        EngineError: ONNX Runtime refuses the model; its own reason is given.
    """
    ort = require("onnxruntime", purpose="running a bundle")
    threads = threads or usable_threads()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if folder is not None:
        options.add_session_config_entry(_FOLDER_OPTION, str(folder))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if kernel:
        native.load_library()  # says clearly what is wrong with it, where something is
    try:
        if kernel:
            options.add_session_config_entry(_THREADS_OPTION, str(threads))
            options.register_custom_ops_library(str(native.library_path()))
        source = model if isinstance(model, bytes) else str(model)
        first, *others = providers
        return ort.InferenceSession(source, options, providers=[(first, dict(provider_options or {})), *others])
    except Exception as error:  # pybind11 makes a class of its own for each status code, with no common base
        name = "the model" if isinstance(model, bytes) else str(model)
        raise EngineError(f"ONNX Runtime {ort.__version__} refuses {name}: {reason(error)}") from error


class OrtEngine(Engine):
    """What all of them share. Thread-safe: ONNX Runtime allows concurrent runs of a session, and the kernel keeps no state."""

    kernel: ClassVar[bool]
    providers: ClassVar[tuple[str, ...]] = ("CPUExecutionProvider",)
    provider_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        super().__init__(bundle, threads=threads or usable_threads())
        self._session: onnxruntime.InferenceSession | None = make_session(
            bundle.file(MODEL),
            kernel=self.kernel,
            threads=self.threads,
            providers=self.providers,
            provider_options=self.provider_options,
        )

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            ort = require("onnxruntime")
        except MissingExtraError as error:
            return str(error)
        except ImportError as error:  # installed, but broken here: another NumPy, an old libc
            return f"onnxruntime cannot be imported: {' '.join(str(error).split())}"
        found = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
        if found < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            return f'onnxruntime {ort.__version__} is too old: pip install "onnxruntime>={oldest}"'
        return None

    def infer(self, frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Run the graph; see :meth:`Engine.infer`. Safe to call from several threads."""
        if self._session is None:
            raise EngineError(f"{self.backend}: the engine was closed")
        card = self.bundle.manifest.input
        check_input(frames, card)
        if len(frames) == 0:  # many graphs hold a Reshape to -1, which nothing can be inferred for
            return {output.name: empty_output(output) for output in self.bundle.manifest.outputs}
        names = [output.name for output in self.bundle.manifest.outputs]
        try:
            values = self._run(self._session, names, np.ascontiguousarray(frames))
        except Exception as error:  # see make_session
            raise EngineError(f"{self.backend} failed on an input of shape {frames.shape}: {reason(error)}") from error
        return dict(zip(names, values, strict=True))

    def _run(
        self, session: onnxruntime.InferenceSession, names: list[str], frames: NDArray[np.generic]
    ) -> list[NDArray[np.generic]]:
        """The outputs of those names."""
        values: list[NDArray[np.generic]] = session.run(names, {self.bundle.manifest.input.name: frames})
        return values

    def close(self) -> None:
        self._session = None

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "backend": self.backend,
            "onnxruntime": onnxruntime.__version__,
            "provider": self.providers[0],
            "threads": self.threads,
            "cpu": cpu_name(),
        }


class OrtCpuEngine(OrtEngine):
    """ONNX Runtime on the CPU with our selective-scan kernel."""

    backend = "ort-cpu"
    kernel = True

    @classmethod
    def unavailable(cls) -> str | None:
        reason = super().unavailable()
        if reason is not None:
            return reason
        try:
            library = native.load_library()
        except NativeLibraryError as error:
            return str(error)
        if not hasattr(library, "RegisterCustomOps"):
            return f"{native.library_path()} was built without its ONNX Runtime part: install edgemamba again"
        return None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"isa": native.isa()}


class OrtFunctionEngine(OrtEngine):
    """Stock ONNX Runtime on the CPU, with nothing of ours loaded: the reference that any device can run."""

    backend = "ort-function"
    kernel = False


def reason(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its own name, status code and source locations."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", str(error))
    text = re.sub(
        r"Non-zero status code returned while running (\S+) node\. Name:'[^']*' Status Message: ", r"\1: ", text
    )
    text = re.sub(r"/\S+\.(?:h|cc|cpp):\d+ .*? was false\. ", "", text)
    text = re.sub(r"(SelectiveScan): \1: ", r"\1: ", text)
    return " ".join(text.split()) or type(error).__name__
