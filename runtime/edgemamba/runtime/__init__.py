"""What a device needs: the operator's native kernel, bundles, engines, sources, streams. Never imports torch.

Public names (resolved on first use, so that importing this package costs nothing and needs no optional dependency):
:func:`load`, :func:`open_source`, :func:`open_sink`, :func:`stream`, :class:`Strategy`, :class:`Bundle`, :class:`Frame`,
:class:`Predictions`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemamba.runtime.bundle import Bundle
    from edgemamba.runtime.engines import Engine, load
    from edgemamba.runtime.frames import Frame
    from edgemamba.runtime.pipeline.strategy import Strategy
    from edgemamba.runtime.predictions import Predictions
    from edgemamba.runtime.sinks import open_sink
    from edgemamba.runtime.sources import open_source
    from edgemamba.runtime.streaming import stream

__all__ = [
    "Bundle",
    "Engine",
    "Frame",
    "Predictions",
    "Strategy",
    "__version__",
    "load",
    "open_sink",
    "open_source",
    "stream",
]

try:
    __version__ = version("edgemamba")
except PackageNotFoundError:  # run from a checkout with PYTHONPATH and no installation
    __version__ = "0+uninstalled"

_HOME = {
    "Bundle": "bundle",
    "Engine": "engines",
    "Frame": "frames",
    "Predictions": "predictions",
    "Strategy": "pipeline.strategy",
    "load": "engines",
    "open_sink": "sinks",
    "open_source": "sources",
    "stream": "streaming",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"edgemamba.runtime.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
