"""From a bundle to an engine in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgemamba.export.building.checks import check_graph, read_graph
from edgemamba.export.building.dialects import Dialect, Typing
from edgemamba.export.building.options import BuildOptions, Precision, Profile, profile
from edgemamba.export.building.process import Built, installed, run
from edgemamba.export.building.worker import Request
from edgemamba.export.graph import strip_functions
from edgemamba.runtime.bundle import (
    MODEL,
    MODEL_DATA,
    Bundle,
    EngineCard,
    Manifest,
    sha256,
    timestamp,
    write_manifest,
)
from edgemamba.runtime.engines import cuda_driver
from edgemamba.runtime.errors import EngineError, ExportError
from edgemamba.runtime.trt_plugin import plugin_library

ENGINES = "engines"


@dataclass(frozen=True)
class Plan:
    """A build that has been checked as far as it can be without the library building it.

    Attributes:
        scans: SelectiveScan nodes of the graph.
        strip: whether the function must be taken out of the file first.
        plugin: the plugin library, where it is used.
        device: the GPU here, where the engine will be for that one only.
        name: the engine's file name.
    """

    bundle: Bundle
    options: BuildOptions
    dialect: Dialect
    precision: Precision
    typing: Typing
    profile: Profile
    scans: int
    strip: bool
    plugin: Path | None
    device: cuda_driver.Device | None
    name: str


def build_engine(
    path: str | Path | Bundle,
    options: BuildOptions,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> EngineCard:
    """Build an engine from a bundle's graph and record it in the bundle; one of the same kind is replaced.

    Args:
        path: the bundle.
        options: what to build; see :class:`BuildOptions`.
        progress: called with a few words before each step.

    Raises:
        BundleError: the bundle is malformed or was changed.
        ExportError: the options and the graph do not go together, or the graph cannot be built.
        MissingExtraError: the library is not installed.
        EngineError: the plugin or the GPU is missing, or the library failed; its reason is given.
    """
    bundle = path if isinstance(path, Bundle) else Bundle.load(path)
    progress("reading the graph")
    plan = make_plan(bundle, options)
    folder = bundle.path / ENGINES
    with ExitStack() as stack:
        try:
            folder.mkdir(exist_ok=True)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".building-", dir=folder)))
        except OSError as error:
            raise ExportError(f"{folder} cannot be written: {error.strerror or error}") from None
        model = _model_file(plan, scratch)
        engine = scratch / plan.name
        built = run(_request(plan, model, engine), plan.dialect, progress)
        card = _card(plan, built)
        bundle = _withdraw(bundle, card.file)
        os.replace(engine, folder / plan.name)
    bundle.with_files(card.file, engines=(*bundle.manifest.engines, card))
    return card


def _card(plan: Plan, built: Built) -> EngineCard:
    return EngineCard(
        file=f"{ENGINES}/{plan.name}",
        backend=plan.options.backend,
        version=built.version,
        device=plan.device.name if plan.device else "",
        compute_capabilities=_capabilities(plan),
        precision=plan.precision,
        shapes=plan.profile,
        plugin=plan.plugin.name if plan.plugin else "",
        plugin_sha256=sha256(plan.plugin) if plan.plugin else "",
        model_sha256=plan.bundle.manifest.files[MODEL],
        build_seconds=round(built.seconds, 3),
        created=timestamp(),
    )


def _withdraw(bundle: Bundle, file: str) -> Bundle:
    """The bundle without a record of an engine that is about to be replaced: an interruption leaves no record that is false."""
    if file not in bundle.manifest.files:
        return bundle
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != file}
    others = tuple(known for known in bundle.manifest.engines if known.file != file)
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), "files": files, "engines": others})
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def make_plan(bundle: Bundle, options: BuildOptions, dialect: Dialect | None = None) -> Plan:
    """Check everything that can be checked before the library is asked to build.

    Args:
        dialect: the library's release; by default what is installed here. Where one is given, neither the GPU nor the plugin
            needs to be here.

    Raises:
        EdgeMambaError: see :func:`build_engine`.
    """
    manifest = bundle.manifest
    precision = options.resolved_precision(manifest)
    shapes = profile(manifest, options.shapes)
    path = bundle.file(MODEL)
    graph = read_graph(path)
    scans = check_graph(graph, path, plugin=options.plugin)
    imagined = dialect is not None
    dialect = dialect or installed(options.backend)
    typing = dialect.typing(manifest.precision, precision)
    uses_plugin = options.plugin and scans > 0
    plugin = plugin_library(dialect.plugin_major) if uses_plugin and not imagined else None
    device = None
    if not dialect.rtx and not imagined:
        reason = cuda_driver.unavailable()
        if reason is not None:
            raise EngineError(f"TensorRT builds for the GPU it runs on, and there is none to use here: {reason}")
        device = cuda_driver.device()
    return Plan(
        bundle=bundle,
        options=options,
        dialect=dialect,
        precision=precision,
        typing=typing,
        profile=shapes,
        scans=scans,
        strip=uses_plugin and dialect.prefers_functions and len(graph.functions) > 0,
        plugin=plugin,
        device=device,
        name=_name(options, dialect, precision, device),
    )


def _name(options: BuildOptions, dialect: Dialect, precision: Precision, device: cuda_driver.Device | None) -> str:
    """Says what the engine is for; builds that differ in nothing of this replace each other."""
    targets = "-".join(map(str, options.sm)) if options.sm else (device.capability.replace(".", "") if device else "")
    parts = [options.backend, dialect.version, f"sm{targets}" if targets else "", precision]
    return "_".join(filter(None, [*parts, "" if options.plugin else "function"])) + ".engine"


def _capabilities(plan: Plan) -> tuple[str, ...]:
    if plan.device is not None:
        return (plan.device.capability,)
    return tuple(f"{target // 10}.{target % 10}" for target in plan.options.sm)


def _model_file(plan: Plan, scratch: Path) -> Path:
    """The file to parse: the bundle's own, or one without the function beside a link to the same weights."""
    original = plan.bundle.file(MODEL)
    if not plan.strip:
        return original
    stripped = scratch / MODEL
    stripped.write_bytes(strip_functions(read_graph(original)).SerializeToString())
    weights = plan.bundle.path / MODEL_DATA
    if weights.is_file():
        try:
            os.link(weights, scratch / MODEL_DATA)
        except OSError:
            shutil.copyfile(weights, scratch / MODEL_DATA)
    return stripped


def _request(plan: Plan, model: Path, engine: Path) -> Request:
    cache = plan.options.timing_cache
    return Request(
        module=plan.dialect.module,
        model=str(model.resolve()),
        engine=str(engine.resolve()),
        input=plan.bundle.manifest.input.name,
        profile=plan.profile,
        typing=plan.typing,
        precision=plan.precision,
        plugin=str(plan.plugin) if plan.plugin else "",
        scans=plan.scans,
        sm=plan.options.sm,
        timing_cache=str(cache.resolve()) if cache else "",
    )


def write_stripped(source: Path, target: Path) -> None:
    """Write the graph without its function, for parsers that prefer functions to plugins (TensorRT 9.0 to 10.6)."""
    model = strip_functions(read_graph(source))
    onnx.save(model, target)
