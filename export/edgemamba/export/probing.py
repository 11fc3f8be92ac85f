"""Run a graph on a backend with any of its tensors as additional outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemamba.export.deployment import INPUT
from edgemamba.runtime.errors import EngineError


class Session(Protocol):
    """The part of ``onnxruntime.InferenceSession`` that probing uses."""

    def run(self, output_names: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Outputs in the order of their names."""
        ...


class SessionFactory(Protocol):
    """Loads a serialised graph, whose larger weights may be in a folder, into a backend."""

    def __call__(self, model: bytes, folder: Path) -> Session:
        """A session that can be run."""
        ...


def _ort_with_kernel(model: bytes, folder: Path) -> Session:
    from edgemamba.runtime.engines.ort import make_session

    session: Session = make_session(model, kernel=True, folder=folder)
    return session


def _ort_function(model: bytes, folder: Path) -> Session:
    from edgemamba.runtime.engines.ort import make_session

    session: Session = make_session(model, kernel=False, folder=folder)
    return session


#: Backends that can run an edited graph; the others can be compared by their outputs only.
SESSIONS: dict[str, SessionFactory] = {"ort-cpu": _ort_with_kernel, "ort-function": _ort_function}


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the graph that also returns the named tensors."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    present = {value.name for value in marked.graph.output}
    known = {value.name: value for value in marked.graph.value_info}
    for name in names:
        if name not in present:
            marked.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
            present.add(name)
    return marked


def run_probed(
    model: onnx.ModelProto, backend: str, names: Sequence[str], frames: NDArray[np.generic], folder: Path
) -> dict[str, NDArray[np.generic]]:
    """The graph's own outputs and the named tensors, by name. ``folder``: where weights are that are not in the graph.

    Raises:
        EngineError: the backend cannot run edited graphs, or refuses this one.
    """
    if backend not in SESSIONS:
        raise EngineError(f"backend {backend} cannot return intermediate tensors")
    marked = with_outputs(model, names)
    outputs = [value.name for value in marked.graph.output]
    try:
        session = SESSIONS[backend](marked.SerializeToString(), folder)
        return dict(zip(outputs, session.run(outputs, {INPUT: frames}), strict=True))
    except EngineError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise EngineError(f"backend {backend}: {str(error).splitlines()[0]}") from error
