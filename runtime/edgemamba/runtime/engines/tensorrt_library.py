"""TensorRT and TensorRT-RTX as Python modules: whether they are here, their log, and our plugin in their registry."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from edgemamba.runtime.engines import cuda_driver
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.extras import missing_message, require
from edgemamba.runtime.operator import OP_TYPE, PLUGIN_NAMESPACE, PLUGIN_VERSION
from edgemamba.runtime.trt_plugin import RTX_MAJOR, plugin_library

LOGGER = logging.getLogger("edgemamba.runtime")

# ILogger's severities up to "error".
_ERROR = 1
# Libraries that a registry of this process holds: a second load of the same file is refused.
_LOADED: dict[tuple[str, Path], Any] = {}


@dataclass(frozen=True)
class Library:
    """One of the two products.

    Attributes:
        backend: our name for it.
        module: Python's.
        title: NVIDIA's.
    """

    backend: str
    module: str
    title: str

    def unavailable(self) -> str | None:
        """Why it cannot run engines here; None where it can. Imports nothing heavy: its libraries are 200 MB."""
        try:
            found = self.module in sys.modules or find_spec(self.module) is not None
        except (ImportError, ValueError):  # a package that is half there
            found = False
        if not found:
            return missing_message(self.module)
        return cuda_driver.unavailable()

    def load(self) -> ModuleType:
        """Import it.

        Raises:
            MissingExtraError: it is not installed.
            EngineError: it is and cannot be loaded.
        """
        try:
            return require(self.module)
        except ModuleNotFoundError:
            raise
        except (ImportError, OSError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise EngineError(f"{self.module} is installed and cannot be loaded: {text}") from None

    def plugin_major(self, trt: Any) -> int:
        """Which plugin binary this release loads."""
        return RTX_MAJOR if self.module == "tensorrt_rtx" else int(str(trt.__version__).partition(".")[0])


TENSORRT = Library("tensorrt", "tensorrt", "TensorRT")
TENSORRT_RTX = Library("tensorrt-rtx", "tensorrt_rtx", "TensorRT-RTX")


def make_logger(trt: Any) -> Any:
    """An ``ILogger`` that keeps errors (``reason``) and passes the rest on to Python's logging."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Called from the library's threads; appending to a list is safe from any of them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= _ERROR:
                self.errors.append(message)
            LOGGER.debug("%s: %s", trt.__name__, message)

        def reason(self, otherwise: str) -> str:
            """The first error since the last call, in one line without places in the library's sources."""
            errors, self.errors = self.errors, []
            return tidy(errors[0]) if errors else otherwise

    return Logger()


def tidy(message: str) -> str:
    """A message in one line, without the places in the library's sources."""
    text = " ".join(message.split())
    text = re.sub(r"\s*\(?In \S+ at \S+:\d+\)?", "", text)
    return re.sub(r"^\[?\w+\.(?:cpp|hpp|h)(?:::\w+)?:+\d+\]?:?\s*", "", text)


def _is_registered(registry: Any) -> bool:
    """Whether the application has our plugin there already, by the autoload library, say: a second load would be refused."""
    return registry.get_creator(OP_TYPE, PLUGIN_VERSION, PLUGIN_NAMESPACE) is not None


def load_plugin(trt: Any, library: Library, logger: Any) -> Path:
    """Register our plugin, once a process.

    Returns:
        Its path.

    Raises:
        EngineError: it is not built here, or this release does not take it.
    """
    path = plugin_library(library.plugin_major(trt))
    key = (library.module, path)
    if key not in _LOADED and not _is_registered(trt.get_plugin_registry()):
        handle = trt.get_plugin_registry().load_library(str(path))
        if handle is None:
            why = logger.reason("it holds no plugin that this release can use")
            raise EngineError(f"{library.title} {trt.__version__} refuses the plugin {path}: {why}")
        _LOADED[key] = handle
    return path
