"""What is proved about a graph before a bundle is written: it is valid ONNX, and stock ONNX Runtime runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemamba.export import layers, reference
from edgemamba.export.deployment import INPUT, OUTPUT, Deployed
from edgemamba.export.probing import run_probed
from edgemamba.runtime.bundle import MODEL, MODEL_DATA
from edgemamba.runtime.errors import EdgeMambaError, ExportError

# Relative difference (L2) above which a value is not the module's output but another tensor of the same shape.
_SAME = 0.1
# Axes of an input of patches, and its elements up to which every module's output is kept at once: 128^3 would take many GiB.
_VOLUMES = 5
_LARGEST_PROBED = 1 << 19


def check(graph: onnx.ModelProto, deployed: Deployed, folder: Path) -> None:
    """Validate the graph, run it once in stock ONNX Runtime, and drop the module notes that do not hold.

    Which value is a module's output was inferred from the graph's structure. Here each such value is compared with what the
    module returns; notes that prove wrong are removed, so that a later search for a diverging layer can rely on the rest. With
    patches too large for that, all are.

    Args:
        folder: where weights are that are not in the graph.

    Raises:
        ExportError: the graph is invalid, does not load or run, or returns values that are not finite.
    """
    try:
        if (folder / MODEL_DATA).exists():  # the checker looks for it beside a file, not beside a message
            (folder / MODEL).write_bytes(graph.SerializeToString())
            onnx.checker.check_model(str(folder / MODEL), full_check=True)
        else:
            onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    frames = deployed.sample(_static_batch(graph))
    if frames.ndim == _VOLUMES and frames.size > _LARGEST_PROBED:
        layers.drop_modules(graph)
    recorded = layers.recorded_modules(graph)
    try:
        outputs = run_probed(graph, "ort-function", sorted(set(recorded.values())), frames, folder)
    except EdgeMambaError as error:
        raise ExportError(f"stock ONNX Runtime cannot run the exported graph: {error}") from error
    if not np.isfinite(outputs[OUTPUT]).all():
        raise ExportError(
            "the exported graph returns values that are not finite (with fp16: its activations overflow; use fp32)"
        )
    if not recorded:
        return
    truth = reference.tape(deployed, frames)
    same = _close(outputs[OUTPUT], reference.run(deployed, frames))
    for node in graph.graph.node:
        for entry in [entry for entry in node.metadata_props if entry.key == layers.MODULE_KEY]:
            value = outputs[node.output[0]]
            # Where the logits themselves differ, the notes are needed to find out why, and nothing can be held against them.
            held = [name for name in entry.value.split() if name in truth and truth[name].shape == value.shape]
            entry.value = " ".join(name for name in held if not same or _close(value, truth[name]))
            if not entry.value:
                node.metadata_props.remove(entry)


def _static_batch(graph: onnx.ModelProto) -> int:
    value = next(value for value in graph.graph.input if value.name == INPUT)
    return int(value.type.tensor_type.shape.dim[0].dim_value) or 1


def _close(value: NDArray[np.generic], truth: NDArray[np.generic]) -> bool:
    difference = np.linalg.norm(np.asarray(value, np.float64) - np.asarray(truth, np.float64))
    return bool(difference <= _SAME * max(float(np.linalg.norm(truth)), 1e-6))
