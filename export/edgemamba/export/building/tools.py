"""The same build with NVIDIA's own tools, as command lines to copy."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from edgemamba.export.building.dialects import Dialect
from edgemamba.export.building.engine import ENGINES, Plan, make_plan
from edgemamba.export.building.options import BuildOptions
from edgemamba.export.building.process import RTX_LIBRARY, RTX_PACKAGE, installed
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.errors import EngineError, ExportError, MissingExtraError
from edgemamba.runtime.trt_plugin import autoload_library, plugin_file, plugin_library

# Where the library is not installed, one release of each kind that is spoken to differently.
_KINDS = {
    "tensorrt": ("10.3.0", "10.13.0", "11.4.0"),
    "tensorrt-rtx": ("1.7.1",),
}
_ONLY_PLUGIN = "model.plugin.onnx"


def command_lines(bundle: Bundle, options: BuildOptions) -> str:
    """Shell lines, with a comment above each: for the library as installed, or for every kind of release.

    Raises:
        EdgeMambaError: as :func:`~edgemamba.export.building.engine.build_engine`, before anything is built.
    """
    try:
        dialects = [installed(options.backend)]
    except (MissingExtraError, EngineError):
        dialects = [Dialect(options.backend, version) for version in _KINDS[options.backend]]
    lines: list[str] = []
    problems: list[ExportError] = []
    for dialect in dialects:
        try:
            plan = make_plan(bundle, options, dialect)
        except ExportError as error:
            problems.append(error)  # a precision, say, that one release has and another has not
        else:
            lines += [*([""] if lines else []), *_for_release(plan)]
    if not lines:
        raise problems[0]
    return "\n".join(lines)


def _for_release(plan: Plan) -> list[str]:
    lines = []
    if plan.strip:
        lines += ["# this release prefers functions to plugins: a graph without them first", shlex.join(strip(plan))]
    if not plan.dialect.rtx:
        lines += [f"# {plan.dialect.name}, trtexec", shlex.join(trtexec(plan))]
    lines += [f"# {plan.dialect.name}, polygraphy", *_polygraphy(plan)]
    if plan.options.sm:
        lines += [
            "# polygraphy has no option for compute capabilities (--sm): it builds for those that are the default"
        ]
    return lines


def _polygraphy(plan: Plan) -> list[str]:
    """Polygraphy's command with what it needs around it, where the library is a wheel.

    It asks the environment which of the two libraries to import; and it loads plugins before it imports either, so that ours
    has to find the library by itself: a wheel's is on no path. TensorRT-RTX's parser moreover looks for the library by a
    name that the wheel does not have, to add a plugin layer, and aborts without it.
    """
    wheel = find_spec(RTX_PACKAGE if plan.dialect.rtx else "tensorrt_libs") if _with_plugin(plan) else None
    folders = list((wheel.submodule_search_locations if wheel else None) or ())
    lines = []
    if folders and plan.dialect.rtx:
        link = os.path.join(tempfile.gettempdir(), "edgemamba-tensorrt-rtx")
        target = os.path.join(folders[0], f"{RTX_LIBRARY}.1")
        lines += [f"mkdir -p {shlex.quote(link)}", shlex.join(["ln", "-sf", target, os.path.join(link, RTX_LIBRARY)])]
        folders.append(link)
    words = ["POLYGRAPHY_USE_TENSORRT_RTX=1"] if plan.dialect.rtx else []
    if folders:
        words.append(f"LD_LIBRARY_PATH={shlex.quote(os.pathsep.join(folders))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}")
    return [*lines, " ".join([*words, shlex.join(polygraphy(plan))])]


def strip(plan: Plan) -> list[str]:
    """The command that takes the function out of a copy of the graph."""
    program = "import sys; from pathlib import Path; from edgemamba.export.building.engine import write_stripped as w; "
    return [
        Path(sys.executable).name,
        "-c",
        program + "w(Path(sys.argv[1]), Path(sys.argv[2]))",
        str(plan.bundle.path / MODEL),
        _model(plan),
    ]


def trtexec(plan: Plan) -> list[str]:
    """``trtexec`` as TensorRT 10 and 11 understand it."""
    words = ["trtexec", f"--onnx={_model(plan)}", f"--saveEngine={_engine(plan)}", "--skipInference"]
    if not _fixed(plan):
        name = plan.bundle.manifest.input.name
        for key, shape in zip(("min", "opt", "max"), plan.profile, strict=True):
            words.append(f"--{key}Shapes={name}:{'x'.join(map(str, shape))}")
    if plan.typing == "strong":
        words.append("--stronglyTyped")
    elif plan.typing == "weak" and plan.precision != "fp32":
        words.append(f"--{plan.precision}")
    if plan.precision == "fp32":
        words.append("--noTF32")
    if plan.options.timing_cache is not None:
        words.append(f"--timingCacheFile={plan.options.timing_cache}")
    if _with_plugin(plan):
        words.append(f"--dynamicPlugins={_plugin(plan, autoload=False)}")
    return words


def polygraphy(plan: Plan) -> list[str]:
    """``polygraphy convert``; it leaves TF32 off unless asked."""
    words = ["polygraphy", "convert", _model(plan), "--convert-to", "trt", "--output", _engine(plan)]
    if not _fixed(plan):
        name = plan.bundle.manifest.input.name
        for key, shape in zip(("min", "opt", "max"), plan.profile, strict=True):
            words += [f"--trt-{key}-shapes", f"{name}:[{','.join(map(str, shape))}]"]
    if plan.typing == "strong":
        words.append("--strongly-typed")
    elif plan.typing == "weak" and plan.precision != "fp32":
        words.append(f"--{plan.precision}")
    if plan.options.timing_cache is not None:
        cache = str(plan.options.timing_cache)
        words += ["--load-timing-cache", cache, "--save-timing-cache", cache]
    if _with_plugin(plan):
        words += ["--plugins", _plugin(plan, autoload=True)]
    return words


def _with_plugin(plan: Plan) -> bool:
    return plan.options.plugin and plan.scans > 0


def _plugin(plan: Plan, *, autoload: bool) -> str:
    """Where the plugin is, or the name it will have once it is built."""
    major = plan.dialect.plugin_major
    try:
        return str(autoload_library(major) if autoload else plugin_library(major))
    except EngineError:
        return f".{os.sep}{plugin_file(major, autoload=autoload)}"


def _fixed(plan: Plan) -> bool:
    return all(isinstance(extent, int) for extent in plan.bundle.manifest.input.shape)


def _model(plan: Plan) -> str:
    return str(plan.bundle.path / (_ONLY_PLUGIN if plan.strip else MODEL))


def _engine(plan: Plan) -> str:
    return str(plan.bundle.path / ENGINES / plan.name)
