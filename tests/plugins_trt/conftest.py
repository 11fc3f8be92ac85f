"""The plugin and the harness, built once for the session from the sources in this checkout."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from plugins_trt.wheels import headers_folder

from edgemamba.plugins_trt.building import BuiltPlugin, build, compile_flags, find_compiler, run_compiler
from edgemamba.plugins_trt.headers import Headers, find_headers
from edgemamba.plugins_trt.sources import find_sources
from edgemamba.runtime.errors import EngineError


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    if platform.system() != "Linux":
        pytest.skip("TensorRT plugins are built for Linux")
    try:
        return find_compiler()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def headers(compiler: list[str]) -> Headers:
    return find_headers(headers_folder())


@pytest.fixture(scope="session")
def plugin(headers: Headers, tmp_path_factory: pytest.TempPathFactory) -> BuiltPlugin:
    """Built as `python -m edgemamba.plugins_trt build` does it, with all warnings as errors."""
    return build(headers.folder, tmp_path_factory.mktemp("plugin"), warnings=True)


@pytest.fixture(scope="session")
def harness(headers: Headers, compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("harness") / "harness"
    sources = find_sources()
    flags = compile_flags(sources, headers, warnings=True)
    # Unoptimised: it compiles in half the time and runs in milliseconds.
    run_compiler([*compiler, *flags, "-O0", *map(str, sources.harness), "-o", str(program), "-ldl"])
    return program
