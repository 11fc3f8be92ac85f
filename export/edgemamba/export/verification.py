"""``verify``: the proof that a bundle's engines say what PyTorch said."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgemamba.export import inputs as samples_of
from edgemamba.export import reference, volume_samples
from edgemamba.export.bisection import Divergence, Fetch, locate, probes_for_modules
from edgemamba.export.deployment import OUTPUT, Deployed, deploy
from edgemamba.export.inputs import Samples
from edgemamba.export.mask_parity import compare_masks
from edgemamba.export.parity import (
    PARITY_HTML,
    PARITY_JSON,
    BackendParity,
    InputsCard,
    ParityReport,
    Tolerance,
    compare_classes,
    compare_output,
)
from edgemamba.export.probing import SESSIONS, run_probed
from edgemamba.export.report import write_html
from edgemamba.runtime import __version__
from edgemamba.runtime.bundle import MODEL, WEIGHTS, Bundle, Manifest, ParitySummary, sha256, timestamp
from edgemamba.runtime.engines import available, load
from edgemamba.runtime.errors import BundleError, CheckpointError, EdgeMambaError, EngineError, ExportError
from edgemamba.train import load_checkpoint

#: Pictures made where none are given, and frames taken from a source where no number is.
SYNTHETIC_SAMPLES = 18
SOURCE_SAMPLES = 64
#: The same of patches of volumes.
SYNTHETIC_PATCHES = 4
SOURCE_PATCHES = 8
# Latency is the median of single-frame runs: at most this many, in at most about this many seconds.
_LATENCY_RUNS = 20
_LATENCY_SECONDS = 2.0
# A tensor inside the graph counts as diverging from this share of the outputs' relative tolerance on.
_INNER_SHARE = 0.1
# Error of healthy tensors: about one rounding of the largest value, of float16, and a few of float32.
_ROUNDING = {"fp32": 5e-7, "fp16": 5e-4}

Runner = Callable[[NDArray[np.generic]], dict[str, NDArray[np.generic]]]


def verify(
    path: str | Path | Bundle,
    backends: Sequence[str] | None = None,
    inputs: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    samples: int | None = None,
    batch: int = 4,
    seed: int = 0,
    tolerance: Tolerance | None = None,
    bisect: bool = True,
    write: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> ParityReport:
    """Hold every backend against PyTorch in float32, on the same frames.

    Args:
        path: the bundle.
        backends: names of :data:`edgemamba.runtime.engines.BACKENDS`; by default all that this machine can run.
        inputs: anything that `edgemamba run` reads (a folder of pictures, a video, DICOM; for models of volumes a series or
            NIfTI); by default seeded synthetic pictures or patches.
        checkpoint: where PyTorch's weights come from, in place of the bundle's ``weights.safetensors``.
        samples: number of frames: by default 18 synthetic ones, or up to 64 of ``inputs``; of patches 4, or up to 8.
        batch: frames per run, where the graph's batch is dynamic; the last run is smaller where it does not divide. Patches of
            volumes are run one by one.
        seed: of the synthetic pictures.
        tolerance: by default the precision's (:meth:`Tolerance.of`).
        bisect: search for the first diverging tensor where a backend fails.
        write: put ``parity.json`` and ``parity.html`` into the bundle and the summary into its manifest.
        progress: called with a few words before each step.

    Returns:
        The report; ``report.passed`` is the verdict.

    Raises:
        EdgeMambaError: the bundle, the checkpoint, the inputs or a backend's name cannot be used.
    """
    if batch < 1 or (samples is not None and samples < 1):
        raise ExportError(f"batch ({batch}) and samples ({samples}) must be at least 1")
    bundle = path if isinstance(path, Bundle) else Bundle.load(path)
    manifest = bundle.manifest
    tolerance = tolerance or Tolerance.of(manifest.precision)
    names, left_out = _backends(bundle, backends)

    progress("rebuilding the PyTorch model")
    model = _reference(bundle, checkpoint)
    progress("reading the inputs")
    data = _samples(manifest, inputs, samples, seed)
    if manifest.volume is not None:
        batch = 1  # a patch of 128^3 voxels takes gigabytes in PyTorch
    if isinstance(manifest.input.shape[0], int):
        batch = manifest.input.shape[0]
        data = _whole_batches(data, batch)

    progress("running pytorch")

    def run_reference(frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        return {OUTPUT: reference.run(model, frames)}

    truth = _run(run_reference, data.frames, batch)
    if not np.isfinite(truth[OUTPUT]).all():
        raise ExportError(
            f"{manifest.model.name}: PyTorch itself returns values that are not finite; the weights are broken"
        )
    results = []
    for name in names:
        progress(f"running {name}")
        results.append(_compare(bundle, name, data, truth, batch, tolerance))
    if bisect and not all(result.passed for result in results):
        progress("searching for the first diverging layer")
        results = _bisect(bundle, results, model, data, tolerance)

    report = ParityReport(
        bundle=bundle.path.resolve().name,
        model=manifest.model.name,
        precision=manifest.precision,
        model_sha256=manifest.files[MODEL],
        created=timestamp(),
        inputs=InputsCard(
            kind=data.kind, source=data.source, samples=data.names, batch=batch, seed=seed, skipped=data.skipped
        ),
        tolerance=tolerance,
        reference=_reference_card(bundle, checkpoint, _latency(run_reference, data.frames[: _single(bundle)])),
        backends=tuple(results),
        left_out=left_out,
        tool_versions={"edgemamba": __version__, "torch": torch.__version__, "numpy": np.__version__},
        passed=all(result.passed for result in results),
    )
    if write:
        _write(bundle, report, data)
    return report


def _samples(manifest: Manifest, inputs: str | Path | None, samples: int | None, seed: int) -> Samples:
    """The user's pictures or volumes, or synthetic ones."""
    card = manifest.volume
    if card is not None:
        if inputs is None:
            return volume_samples.synthetic(card, samples or SYNTHETIC_PATCHES, seed)
        return volume_samples.patches(inputs, card, samples or SOURCE_PATCHES)
    recipe = manifest.preprocessing
    if inputs is None:
        return samples_of.synthetic(recipe, samples or SYNTHETIC_SAMPLES, seed)
    return samples_of.pictures(inputs, recipe, samples or SOURCE_SAMPLES)


def _backends(bundle: Bundle, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The backends to run: those named, or all that can be used here with this bundle; and why not the others."""
    if names:
        return list(dict.fromkeys(names)), {}
    reasons = available(bundle)
    usable = [name for name, reason in reasons.items() if reason is None]
    # The report travels with the bundle: it names the bundle, not the folder it lay in.
    own = str(bundle.path)
    left_out = {name: reason.replace(own, bundle.path.name) for name, reason in reasons.items() if reason is not None}
    if not usable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise EngineError(f"no backend can be used here; {listed}")
    return usable, left_out


def _reference(bundle: Bundle, checkpoint: str | Path | None) -> Deployed:
    if checkpoint is None:
        return reference.reference_model(bundle)
    model = reference.architecture(bundle)
    report = load_checkpoint(model, Path(checkpoint))
    if report.adapted:
        raise CheckpointError(
            f"{checkpoint} is not what {bundle.path} was made from: {', '.join(report.adapted)} differ"
        )
    return deploy(model, bundle.manifest.volume or bundle.manifest.preprocessing)


def _reference_card(bundle: Bundle, checkpoint: str | Path | None, latency: float) -> dict[str, Any]:
    """What the backends were held against."""
    path = Path(checkpoint) if checkpoint is not None else bundle.path / WEIGHTS
    return {
        "name": f"PyTorch {torch.__version__}, float32, CPU",
        "weights": path.name,
        "weights_sha256": sha256(path),
        "threads": torch.get_num_threads(),
        "latency_ms": latency,
    }


def _whole_batches(data: Samples, batch: int) -> Samples:
    """Repeat the last frame until a fixed batch is full."""
    missing = -len(data.frames) % batch
    if not missing:
        return data
    frames = np.concatenate([data.frames, np.repeat(data.frames[-1:], missing, axis=0)])
    return replace(data, frames=frames, names=(*data.names, *[data.names[-1]] * missing))


def _run(runner: Runner, frames: NDArray[np.generic], batch: int) -> dict[str, NDArray[np.generic]]:
    """All frames, ``batch`` at a time."""
    parts = [runner(frames[start : start + batch]) for start in range(0, len(frames), batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _single(bundle: Bundle) -> int:
    """Frames in the smallest batch that the graph takes."""
    size = bundle.manifest.input.shape[0]
    return size if isinstance(size, int) else 1


def _latency(runner: Runner, frames: NDArray[np.generic]) -> float:
    """Median milliseconds of one run, after one that warms up."""
    runner(frames)
    times: list[float] = []
    while len(times) < _LATENCY_RUNS and (len(times) < 3 or sum(times) < _LATENCY_SECONDS):
        start = time.perf_counter()
        runner(frames)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _compare(
    bundle: Bundle,
    name: str,
    data: Samples,
    truth: dict[str, NDArray[np.generic]],
    batch: int,
    tolerance: Tolerance,
) -> BackendParity:
    """Run one backend and compare each of its outputs. What it cannot do is a failed result, not an exception."""
    try:
        with load(bundle, name) as engine:
            outputs = _run(engine.infer, data.frames, batch)
            latency = _latency(engine.infer, data.frames[: _single(bundle)])
            description = engine.describe()
        compared = tuple(compare_output(key, outputs[key], truth[key], tolerance) for key in truth)
        compare = compare_masks if truth[OUTPUT].ndim > 2 else compare_classes
        agreement = compare(outputs[OUTPUT], truth[OUTPUT], tolerance)
    except (EngineError, ValueError, KeyError) as error:
        if isinstance(error, EngineError) and "no backend" in str(error):
            raise
        return BackendParity(backend=name, error=str(error), passed=False)
    return BackendParity(
        backend=name,
        description=description,
        outputs=compared,
        agreement=agreement,
        latency_ms=latency,
        passed=agreement.passed and all(output.passed for output in compared),
    )


def _bisect(
    bundle: Bundle, results: list[BackendParity], model: Deployed, data: Samples, tolerance: Tolerance
) -> list[BackendParity]:
    """Add to each failed backend where it leaves the reference.

    A backend that fails while another passes is held against that one, tensor by tensor; where none passes, the graph itself
    is suspect and is held against PyTorch's modules.
    """
    graph = _graph(bundle)
    good = next((result.backend for result in results if result.passed and result.backend in SESSIONS), None)
    finished = []
    for result in results:
        if result.passed or result.backend not in SESSIONS or not result.outputs:
            finished.append(result)
            continue
        worst = result.outputs[0].worst_sample
        size = _single(bundle)
        frames = data.frames[worst // size * size : worst // size * size + size]
        try:
            bounds = _INNER_SHARE * tolerance.rtol, _ROUNDING[bundle.manifest.precision]
            divergence = _locate(graph, result.backend, good, model, frames, bundle.path, bounds)
        except EdgeMambaError as error:
            finished.append(result.model_copy(update={"error": f"the search for the diverging layer failed: {error}"}))
        else:
            finished.append(result.model_copy(update={"divergence": divergence}))
    return finished


def _graph(bundle: Bundle) -> onnx.ModelProto:
    path = bundle.file(MODEL)
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path} is not a readable ONNX model: {error}") from None


def _locate(
    graph: onnx.ModelProto,
    backend: str,
    good: str | None,
    model: Deployed,
    frames: NDArray[np.generic],
    folder: Path,
    bounds: tuple[float, float],
) -> Divergence | None:
    """Search one backend; ``bounds`` are ``bound`` and ``rounding`` of :func:`locate`, ``folder`` is the bundle's."""
    bound, rounding = bounds

    def candidate(names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        return run_probed(graph, backend, names, frames, folder)

    if good is not None:

        def believed(names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
            return run_probed(graph, good, names, frames, folder)

        return locate(graph, candidate, believed, against=good, bound=bound, rounding=rounding)
    recorded = reference.tape(model, frames)
    probes = probes_for_modules(graph, recorded)
    from_tape: Fetch = lambda names: {name: recorded[probes[name]] for name in names}  # noqa: E731
    return locate(graph, candidate, from_tape, against="pytorch", bound=bound, rounding=rounding, comparable=probes)


def _write(bundle: Bundle, report: ParityReport, data: Samples) -> None:
    """Put the report into the bundle and its summary into the manifest."""
    try:
        (bundle.path / PARITY_JSON).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_html(report, bundle.path / PARITY_HTML, frames=None if data.clinical else data.pictures())
        summary = ParitySummary(passed=report.passed, date=report.created, max_abs_error=report.max_abs_error())
        bundle.with_files(PARITY_JSON, PARITY_HTML, parity=summary)
    except OSError as error:
        raise ExportError(f"{bundle.path}: the report cannot be written: {error.strerror or error}") from None
