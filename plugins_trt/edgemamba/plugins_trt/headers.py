"""TensorRT's headers: the usual places, and the version that they say."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.trt_plugin import MAJORS

_RUNTIME, _VERSION = "NvInferRuntime.h", "NvInferVersion.h"

# What names the root of an unpacked tar archive in people's build scripts.
_ROOT_VARIABLES = ("TensorRT_ROOT", "TENSORRT_ROOT", "TRT_ROOT", "TENSORRT_DIR")
# Packages that bring headers; TensorRT's own wheels do not.
_PACKAGES = {"tensorrt": "include", "tensorrt_libs": "include", "kernel_lens": "include/tensorrt"}

HOW_TO_GET = (
    "on a Jetson or with NVIDIA's apt repository: apt install libnvinfer-headers-dev; from the tar archive: set "
    "TensorRT_ROOT or pass --tensorrt-include DIR"
)


@dataclass(frozen=True)
class Headers:
    """A folder with TensorRT's headers.

    Attributes:
        folder: what the compiler gets as ``-isystem``.
        version: major, minor and patch.
    """

    folder: Path
    version: tuple[int, int, int]

    @property
    def major(self) -> int:
        """TensorRT's major version."""
        return self.version[0]

    def __str__(self) -> str:
        return f"TensorRT {'.'.join(map(str, self.version))} in {self.folder}"


def read_version(folder: Path) -> tuple[int, int, int]:
    """Major, minor and patch from ``NvInferVersion.h``; from 10.11 on its macros name other macros.

    Raises:
        EngineError: where the header is missing or says no version.
    """
    try:
        text = (folder / _VERSION).read_text(errors="replace")
    except OSError as error:
        raise EngineError(f"{folder / _VERSION} cannot be read: {error.strerror}") from error
    defined: dict[str, str] = dict(re.findall(r"^\s*#\s*define\s+(\w+)\s+(\w+)", text, re.MULTILINE))
    numbers = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        value = defined.get(f"NV_TENSORRT_{part}", "")
        value = defined.get(value, value)
        if not value.isdigit():
            raise EngineError(f"{folder / _VERSION} does not say NV_TENSORRT_{part}: is it TensorRT's header?")
        numbers.append(int(value))
    return (numbers[0], numbers[1], numbers[2])


def places() -> Iterator[Path]:
    """Folders where headers lie: environment, apt and JetPack, tar archives, Python packages. May be absent or repeated."""
    for variable in _ROOT_VARIABLES:
        if root := os.environ.get(variable):
            yield from (Path(root, "include"), Path(root))
    triplet = f"{platform.machine()}-linux-gnu"
    yield from (Path("/usr/include", triplet), Path("/usr/include"), Path("/usr/local/include"))
    yield from (Path("/usr/local/tensorrt/include"), Path("/usr/src/tensorrt/include"), Path("/opt/tensorrt/include"))
    for parent in (Path("/opt"), Path("/usr/local"), Path.home()):
        # Newest first: TensorRT-10.9.0.34 before TensorRT-10.3.0.26.
        found = parent.glob("TensorRT-*/include")
        yield from sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], reverse=True)
    for package, inside in _PACKAGES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder, inside)


def installed() -> list[Headers]:
    """Every set of headers in the usual places, in the order in which they are preferred."""
    found: dict[Path, Headers] = {}
    for place in places():
        folder = place.resolve()
        if folder in found or not (folder / _RUNTIME).is_file():
            continue
        try:
            found[folder] = Headers(folder, read_version(folder))
        except EngineError:
            continue
    return list(found.values())


def find_headers(given: Path | None = None) -> Headers:
    """The headers in ``given``, or the first usable ones of the usual places.

    Raises:
        EngineError: where there are none, or only of a TensorRT that the plugin does not serve; says how to get them.
    """
    if given is not None:
        folder = next((place for place in (given, given / "include") if (place / _RUNTIME).is_file()), None)
        if folder is None:
            raise EngineError(f"{given} has no {_RUNTIME}: pass the folder of TensorRT's headers")
        headers = Headers(folder.resolve(), read_version(folder))
        if headers.major not in MAJORS:
            raise EngineError(f"{headers} is not served by the plugin, which needs {_served()}")
        return headers
    found = installed()
    for headers in found:
        if headers.major in MAJORS:
            return headers
    if found:
        raise EngineError(f"the only headers are of {found[0]}; the plugin needs {_served()}: {HOW_TO_GET}")
    raise EngineError(f"TensorRT's headers ({_RUNTIME}) are not on this machine: {HOW_TO_GET}")


def _served() -> str:
    return "TensorRT " + " or ".join(map(str, MAJORS))
