"""``python -m edgemamba.plugins_trt build|where|doctor``."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from edgemamba.plugins_trt.building import build, cuda_include, find_compiler
from edgemamba.plugins_trt.headers import installed
from edgemamba.runtime.errors import EdgeMambaError
from edgemamba.runtime.trt_plugin import (
    MAJORS,
    autoload_library,
    build_info,
    plugin_file,
    plugin_folders,
    plugin_library,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

# Distributions whose library may load the plugin.
_LIBRARIES = ("tensorrt", "tensorrt-lean", "tensorrt-dispatch", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings")


@app.command("build")
def build_command(
    tensorrt_include: Annotated[
        Path | None, typer.Option(help="Folder of TensorRT's headers; default: the usual places.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: where edgemamba looks for it.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="All compiler warnings, as errors.")] = False,
) -> None:
    """Build the TensorRT plugin and its autoload library for the TensorRT that is installed here."""
    made = build(tensorrt_include, output, warnings=strict)
    print(f"headers   {made.headers}")
    print(f"compiler  {' '.join(find_compiler())}; CUDA headers: {cuda_include() or 'none, and none needed'}")
    print(f"plugin    {made.plugin} ({made.plugin.stat().st_size} bytes): {made.info}")
    print(f"autoload  {made.autoload}")


@app.command()
def where(
    major: Annotated[int | None, typer.Option(help="TensorRT's major version; 11 for TensorRT-RTX.")] = None,
    autoload: Annotated[bool, typer.Option("--autoload", help="The library that registers itself.")] = False,
) -> None:
    """Print the path of the plugin, for trtexec --dynamicPlugins and the like."""
    find = autoload_library if autoload else plugin_library
    print(find(major if major is not None else MAJORS[-1]))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what a build would use, and what is built. Exit code 1 where no plugin is built."""
    try:
        compiler = " ".join(find_compiler())
    except EdgeMambaError as error:
        compiler = f"missing: {error}"
    plugins: dict[str, str] = {}
    for major in MAJORS:
        for folder in plugin_folders():
            if (path := folder / plugin_file(major)).is_file():
                plugins.setdefault(str(path), _info(path))
    findings = {
        "compiler": [compiler],
        "headers": [str(headers) for headers in installed()],
        "cuda_headers": [str(cuda_include() or "none, and none needed")],
        "tensorrt_packages": [f"{name} {found}" for name in _LIBRARIES if (found := _version(name))],
        "plugins": [f"{path}: {info}" for path, info in plugins.items()],
        "folders": [str(folder) for folder in plugin_folders()],
    }
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        for name, lines in findings.items():
            print(f"{name.replace('_', ' '):<18}" + f"\n{'':<18}".join(lines or ["none"]))
    if not plugins:
        raise typer.Exit(1)


def _info(path: Path) -> str:
    try:
        return build_info(path)
    except EdgeMambaError as error:
        return f"unusable: {error}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 nothing is built, 2 something is missing (one line on stderr)."""
    try:
        status = app(arguments, prog_name="python -m edgemamba.plugins_trt", standalone_mode=False)
    except EdgeMambaError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        explain = getattr(error, "format_message", None)  # click's usage errors, of whichever click typer has
        if explain is None:
            raise
        _fail(explain(), 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print(f"edgemamba: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
