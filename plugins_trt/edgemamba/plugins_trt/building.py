"""Compiling and installing the plugin with nothing but a C++ compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemamba.plugins_trt.headers import Headers, find_headers
from edgemamba.plugins_trt.sources import Sources, find_sources
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.trt_plugin import build_info, plugin_file, plugin_folders

_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_COMPILE = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden")
# No undefined symbols, nothing linked that is not used, no symbol table: the file may be embedded in engines.
_LINK = ("-shared", "-Wl,-z,defs", "-Wl,--as-needed", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-s")


@dataclass(frozen=True)
class BuiltPlugin:
    """What :func:`build` installed.

    Attributes:
        headers: TensorRT's headers that it was built with.
        plugin: the plugin library.
        autoload: the library that registers it when loaded.
        info: what the plugin says of itself.
    """

    headers: Headers
    plugin: Path
    autoload: Path
    info: str


def find_compiler() -> list[str]:
    """``$CXX`` or the first C++ compiler on the path, as the start of a command line.

    Raises:
        EngineError: where there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise EngineError(f"$CXX names {named[0]}, which is not on the path")
        return named
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise EngineError("no C++ compiler on the path: apt install g++")


def cuda_include() -> Path | None:
    """The folder of a CUDA toolkit's headers, where one is installed. Not needed: see ``plugins_trt/compat``."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        roots.append(str(Path(nvcc).resolve().parents[1]))
    for root in filter(None, roots):
        if (folder := Path(root, "include")).joinpath("cuda_runtime_api.h").is_file():
            return folder
    return None


def compile_flags(sources: Sources, headers: Headers, *, warnings: bool = False) -> list[str]:
    """Flags that every file of the plugin and of its harness is compiled with.

    Args:
        warnings: all warnings, as errors: for our own tests, not for users' compilers.
    """
    # -isystem: TensorRT's headers deprecate parts of themselves, which -Werror must not see.
    flags = [*_COMPILE, *(_WARNINGS if warnings else ()), *(f"-I{folder}" for folder in sources.includes)]
    flags += ["-isystem", str(headers.folder)]
    if toolkit := cuda_include():
        flags += ["-isystem", str(toolkit)]
    return [*flags, "-idirafter", str(sources.compat)]


def build(
    tensorrt_include: Path | None = None,
    output: Path | None = None,
    *,
    warnings: bool = False,
) -> BuiltPlugin:
    """Build the plugin and its autoload library, and install them where :mod:`edgemamba.runtime.trt_plugin` looks.

    Args:
        tensorrt_include: folder of TensorRT's headers; None: the usual places.
        output: folder to write to; None: the first of the places looked at that can be written.
        warnings: all warnings, as errors.

    Raises:
        EngineError: where a compiler, the headers or a writable folder is missing, or a compiler fails; says which.
    """
    compiler, sources, headers = find_compiler(), find_sources(), find_headers(tensorrt_include)
    folder = _writable_folder(output)
    names = [plugin_file(headers.major, autoload=autoload) for autoload in (False, True)]
    flags = compile_flags(sources, headers, warnings=warnings)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        made = [Path(scratch, name) for name in names]
        exports = f"-Wl,--version-script={sources.exports}"
        files = [*sources.plugin, sources.write_device_code(Path(scratch))]
        run_compiler([*compiler, *flags, *_LINK, exports, *map(str, files), "-o", str(made[0]), *_libraries()])
        macros = [f"-DEDGEMAMBA_TRT_MAJOR={headers.major}", f'-DEDGEMAMBA_TRT_PLUGIN_FILE="{names[0]}"']
        run_compiler(
            [*compiler, *flags, *macros, *_LINK, *map(str, sources.autoload), "-o", str(made[1]), *_libraries()]
        )
        info = build_info(made[0])
        # Whole or not at all: a process may be loading the old ones.
        installed = [folder / name for name in names]
        for new, place in zip(made, installed, strict=True):
            os.replace(new, place)
    return BuiltPlugin(headers, installed[0], installed[1], info)


def run_compiler(command: Sequence[str]) -> None:
    """Run one compiler command.

    Raises:
        EngineError: with the compiler's first error line where it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next(
        (line for line in lines if "error" in line or "undefined" in line), lines[0] if lines else "no message"
    )
    raise EngineError(f"{Path(command[0]).name} could not build the plugin: {first}")


def _libraries() -> list[str]:
    # Part of libc since glibc 2.34; --as-needed drops them there.
    return ["-ldl", "-lpthread"]


def _writable_folder(output: Path | None) -> Path:
    """``output``, or the first of the usual folders that can be made and written."""
    problems = []
    for folder in [output] if output is not None else plugin_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder.resolve()
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
    raise EngineError(f"no folder to write the plugin to ({'; '.join(problems)}): pass --output DIR")
