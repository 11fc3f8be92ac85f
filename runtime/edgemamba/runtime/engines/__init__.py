"""Inference backends behind one interface: :func:`load` picks one, :func:`available` says which can be used here."""

from __future__ import annotations

import logging
from pathlib import Path

from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import EngineError

__all__ = ["BACKENDS", "Engine", "available", "backend_class", "load"]

# Name -> (module, class). In the order in which ``auto`` tries them; the reference backends are never chosen by ``auto``.
BACKENDS = {
    "tensorrt": ("edgemamba.runtime.engines.tensorrt", "TensorRTEngine"),
    "tensorrt-rtx": ("edgemamba.runtime.engines.tensorrt", "TensorRTRTXEngine"),
    "ort-cuda": ("edgemamba.runtime.engines.cuda_ort", "OrtCudaEngine"),
    "ort-cpu": ("edgemamba.runtime.engines.ort", "OrtCpuEngine"),
    "ort-function": ("edgemamba.runtime.engines.ort", "OrtFunctionEngine"),
}
_AUTO = ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort-cpu", "ort-function")
# A GPU is a wish, not a promise: what cannot be used of these is worth a line only where the bundle was built for it.
_ON_GPU = ("tensorrt", "tensorrt-rtx", "ort-cuda")
# ONNX Runtime makes as many threads as it is told to, and takes the machine down with them.
_MOST_THREADS = 1024

LOGGER = logging.getLogger("edgemamba.runtime")


def backend_class(name: str) -> type[Engine]:
    """The engine class of a backend.

    Raises:
        EngineError: there is no backend of that name.
    """
    import importlib

    if name not in BACKENDS:
        raise EngineError(f"there is no backend {name!r}; choose one of: auto, {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name]
    engine: type[Engine] = getattr(importlib.import_module(module), attribute)
    return engine


def available(bundle: Bundle | None = None) -> dict[str, str | None]:
    """Each backend and why it cannot be used on this machine (None: it can), or with this bundle, where one is given."""
    classes = {name: backend_class(name) for name in BACKENDS}
    return {
        name: engine_class.unavailable() or (engine_class.unsuited(bundle) if bundle is not None else None)
        for name, engine_class in classes.items()
    }


def load(path: str | Path | Bundle, backend: str = "auto", *, threads: int = 0) -> Engine:
    """Load a bundle into an inference backend.

    Args:
        path: the bundle's folder, or a bundle already loaded. Its digests are checked before anything in it is executed.
        backend: a name of :data:`BACKENDS`, or ``auto``: the first that this machine can run; where that is not the
            fastest there is, the log says why.
        threads: intra-op threads; 0 lets the backend choose.

    Raises:
        BundleError: the bundle is missing, malformed or changed.
        EngineError: the backend is unknown, cannot be used here (the reason is given), or rejects the graph.
    """
    if not 0 <= threads <= _MOST_THREADS:
        raise EngineError(f"threads is {threads}; 0 (the backend's own choice) to {_MOST_THREADS} can be used")
    bundle = path if isinstance(path, Bundle) else Bundle.load(path)
    if backend != "auto":
        engine_class = backend_class(backend)
        reason = engine_class.unavailable()
        if reason:
            raise EngineError(f"backend {backend} cannot be used here: {reason}")
        return engine_class(bundle, threads=threads)
    return _first_usable(bundle, threads)


def _first_usable(bundle: Bundle, threads: int) -> Engine:
    reasons: list[str] = []
    for name in _AUTO:
        engine_class = backend_class(name)
        if engine_class.unsuited(bundle) is not None:
            continue
        reason = engine_class.unavailable()
        if reason is None:
            try:
                engine = engine_class(bundle, threads=threads)
            except EngineError as error:
                if name not in _ON_GPU:  # the graph itself is refused: another backend would say the same
                    raise
                reason = str(error)
            else:
                if reasons:
                    LOGGER.warning("using %s, which is slower, because of %s", name, "; ".join(reasons))
                return engine
        elif name == "ort-cuda":
            continue
        reasons.append(f"{name}: {reason}")
    raise EngineError("no backend can be used here; " + "; ".join(reasons))
