"""Where the TensorRT plugin lies on this machine. It is built on the device: ``python -m edgemamba.plugins_trt build``.

Two files per TensorRT major, both made from ``plugins_trt/``:

- ``libedgemamba_trt10.so``: the plugin, for ``IPluginRegistry::loadLibrary``, ``trtexec --dynamicPlugins`` and
  ``--setPluginsToSerialize``;
- ``libedgemamba_trt10_autoload.so``: registers it as soon as it is loaded, for ``polygraphy --plugins``,
  ``trtexec --staticPlugins`` and ``ctypes.CDLL``. It must lie beside the plugin.
"""

from __future__ import annotations

import ctypes
import os
from importlib import resources
from pathlib import Path

from edgemamba.runtime.errors import EngineError

# Plugin ABIs that the library serves (plugins_trt/src/host.h); TensorRT-RTX 1.x has that of 11.
MAJORS = (10, 11)
RTX_MAJOR = 11

# A folder that is searched first, and that `build` writes to.
ENVIRONMENT = "EDGEMAMBA_TRT_PLUGIN_DIR"
BUILD_COMMAND = "python -m edgemamba.plugins_trt build"


def plugin_file(major: int, *, autoload: bool = False) -> str:
    """The file's name for TensorRT ``major``."""
    return f"libedgemamba_trt{major}{'_autoload' if autoload else ''}.so"


def plugin_folders() -> list[Path]:
    """The folders that are searched, in order: ``$EDGEMAMBA_TRT_PLUGIN_DIR``, beside the native library, the user's own."""
    named = os.environ.get(ENVIRONMENT)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    # In an editable install the package has two folders; the native library is in the one that pip wrote.
    beside = Path(str(resources.files("edgemamba.runtime").joinpath("libedgemamba.so"))).parent
    return [*([Path(named)] if named else []), beside, data / "edgemamba"]


def plugin_library(major: int) -> Path:
    """The plugin for TensorRT ``major`` (:data:`RTX_MAJOR` for TensorRT-RTX).

    One that was built with another major's headers will do where there is none of this major: the plugin's own interfaces
    are the same in all :data:`MAJORS` (its messages then go to stderr, because the loggers differ).

    Raises:
        EngineError: where there is none, or the major is not one of :data:`MAJORS`.
    """
    return _find(major, autoload=False)


def autoload_library(major: int) -> Path:
    """The library that registers the plugin when it is loaded; see :func:`plugin_library`."""
    return _find(major, autoload=True)


def build_info(library: Path) -> str:
    """What the plugin says of itself: ``edgemamba SelectiveScan 1, TensorRT headers 10.14.1``.

    Raises:
        EngineError: where the file cannot be loaded or is not this plugin.
    """
    try:
        function = ctypes.CDLL(str(library)).em_trt_build_info
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{library} is not a usable TensorRT plugin: {error}: build it again: {BUILD_COMMAND}"
        ) from error
    function.restype = ctypes.c_char_p
    text: str = function().decode()
    return text


def last_error(library: Path) -> str:
    """The plugin's last error in this process, or an empty string; starts with the name of the argument that is wrong."""
    text = ctypes.create_string_buffer(1024)
    function = ctypes.CDLL(str(library)).em_trt_last_error
    function.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    function.restype = ctypes.c_size_t
    function(text, len(text))
    return text.value.decode(errors="replace")


def _find(major: int, *, autoload: bool) -> Path:
    if major not in MAJORS:
        known = ", ".join(map(str, MAJORS))
        raise EngineError(f"the TensorRT plugin serves TensorRT {known} and TensorRT-RTX, not TensorRT {major}")
    for candidate in (major, *(other for other in reversed(MAJORS) if other != major)):
        for folder in plugin_folders():
            path = folder / plugin_file(candidate, autoload=autoload)
            if path.is_file():
                return path.resolve()
    raise EngineError(f"the TensorRT plugin ({plugin_file(major)}) is not built on this machine: {BUILD_COMMAND}")
