"""Where a graph's results leave the reference's: the first diverging tensor, and the layer that made it.

Intermediate tensors are marked as outputs of the graph and compared with the reference's. Two searches are enough:

1. over the tensors that everything passes through (no other activation is alive beside them: block outputs, in residual
   networks), which brackets the fault and gives the error's growth over depth;
2. over every comparable tensor between the last good one of these and the first bad one.

The reference is either the same graph on another backend, where every tensor can be compared, or PyTorch, where the outputs of
modules and of the selective scans can (:mod:`edgemamba.export.reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgemamba.export.layers import recorded_modules
from edgemamba.export.reference import SCAN_PREFIX
from edgemamba.runtime.operator import OP_TYPE

Tensors = Mapping[str, NDArray[np.generic]]
#: Returns the named tensors of the graph.
Fetch = Callable[[Sequence[str]], Tensors]

_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)
# A fault makes the error jump: this much over everything before it (healthy layers let it grow by less).
_JUMP = 8.0
# A jump counts if it reaches this share of the largest error: what a fault does where it is made may grow later.
_SHARE = 1 / 30
# Tensors fetched in one run: about one block of any backbone, and a bound on memory (the search uses a single frame).
_PER_RUN = 64


class TrailPoint(BaseModel):
    """The error at one tensor: largest absolute difference over the reference's largest absolute value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    place: str
    error: float | None


class Divergence(BaseModel):
    """Where the results part.

    Attributes:
        tensor: the first diverging value of the graph.
        node, op_type: the node that computes it, named after its module.
        module: the PyTorch module whose output it is, or in which it is computed.
        error: its error; None where it is not finite. ``error_before``: the largest error of the tensors before it.
        sharp: whether the error jumps here; if not, it has grown gradually and this is where it passes the bound.
        against: the reference.
        trail: the error over depth (first search), then within the bracket (second search).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    node: str
    op_type: str
    module: str
    error: float | None
    error_before: float
    sharp: bool
    against: str
    trail: tuple[TrailPoint, ...] = ()
    details: tuple[TrailPoint, ...] = ()
    note: str = ""

    def describe(self) -> str:
        """One sentence."""
        error = "not finite" if self.error is None else f"error {self.error:.1e}"
        how = "first diverges at" if self.sharp else "drifts gradually, past the bound at"
        where = f"{how} {self.module or self.node} ({self.op_type} {self.node}, tensor {self.tensor})"
        return f"{where}: {error}, {self.error_before:.1e} before it; against {self.against}{self.note and '; ' + self.note}"


@dataclass(frozen=True)
class _Activation:
    """A float tensor that depends on the input, in the order of execution."""

    name: str
    node: onnx.NodeProto
    everything_passes: bool


def activations(model: onnx.ModelProto) -> list[_Activation]:
    """All float tensors that depend on the graph's input, in the order of execution.

    Graphs are topologically sorted (the ONNX standard demands it). A tensor is passed by everything if, once it is computed, no
    other activation is still needed.
    """
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    depends = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    # Reading a tensor's shape does not read the picture.
    readers = ((index, node) for index, node in enumerate(graph.node) if node.op_type not in ("Shape", "Size"))
    last_use = {name: index for index, node in readers for name in node.input}
    found: list[_Activation] = []
    alive = set(depends)
    for index, node in enumerate(graph.node):
        new = [name for name in node.output if types.get(name) in _FLOATS and depends.intersection(node.input)]
        depends.update(new)
        alive.update(new)
        alive = {name for name in alive if last_use.get(name, -1) > index or name in outputs}
        found.extend(_Activation(name, node, alive == {name}) for name in new)
    return found


def probes_for_modules(model: onnx.ModelProto, tape: Tensors) -> dict[str, str]:
    """Value name -> entry of the PyTorch tape to hold it against: outputs of modules and of selective scans."""
    probes = {value: module for module, value in recorded_modules(model).items() if module in tape}
    scans = [node.output[0] for node in model.graph.node if node.op_type == OP_TYPE]
    if f"{SCAN_PREFIX}{len(scans) - 1}" in tape and f"{SCAN_PREFIX}{len(scans)}" not in tape:
        probes.update({value: f"{SCAN_PREFIX}{index}" for index, value in enumerate(scans)})
    return probes


def locate(
    model: onnx.ModelProto,
    candidate: Fetch,
    reference: Fetch,
    *,
    against: str,
    bound: float,
    rounding: float = 0.0,
    comparable: Iterable[str] | None = None,
) -> Divergence | None:
    """Find the first diverging tensor.

    Args:
        model: the graph both sides name tensors of.
        candidate: runs the suspect backend and returns the named tensors.
        reference: the same for what is believed.
        against: the reference's name, for the report.
        bound: error (see :class:`TrailPoint`) from which a tensor counts as diverging.
        rounding: error that healthy tensors have, from the precision alone.
        comparable: names of the tensors that both sides have; all of them by default.

    Returns:
        None where no comparable tensor reaches the bound and none stands out.
    """
    known = None if comparable is None else set(comparable)
    everything = [item for item in activations(model) if known is None or item.name in known]
    passes = [item for item in everything if item.everything_passes]
    module_of = _module_of(model)
    trail = _errors(passes, candidate, reference, module_of)
    first_bad = _first(trail, bound, rounding)
    # The bracket: after the last good tensor that everything passes through, up to the first bad one.
    index = {item.name: position for position, item in enumerate(everything)}
    start = index[passes[first_bad - 1].name] + 1 if first_bad else 0
    stop = index[passes[first_bad].name] + 1 if first_bad < len(passes) else len(everything)
    if first_bad == len(passes) and passes:
        start = index[passes[-1].name] + 1
    bracket = everything[start:stop]
    details = _errors(bracket, candidate, reference, module_of)
    before = max((point.error or 0.0 for point in trail[:first_bad]), default=0.0)
    position = _first(details, bound, max(before, rounding))
    if position == len(details):
        if first_bad == len(passes):
            return None
        # The tensor that was bad beside its peers is good in a run of its own neighbourhood.
        item, point, before_it, note = (
            passes[first_bad],
            trail[first_bad],
            before,
            "not seen again with its neighbours as outputs",
        )
    else:
        item, point, note = bracket[position], details[position], ""
        before_it = max([before, *(entry.error or 0.0 for entry in details[:position])])
    return Divergence(
        tensor=item.name,
        node=item.node.name,
        op_type=item.node.op_type,
        module=module_of.get(item.name) or item.node.name.rpartition("/")[0],
        error=point.error,
        error_before=before_it,
        sharp=point.error is None or point.error >= _JUMP * max(before_it, rounding),
        against=against,
        trail=tuple(trail),
        details=tuple(details),
        note=note,
    )


def _module_of(model: onnx.ModelProto) -> dict[str, str]:
    """Value name -> innermost module whose output it is."""
    modules: dict[str, str] = {}
    for module, value in recorded_modules(model).items():
        modules.setdefault(value, module)
    return modules


def _first(trail: Sequence[TrailPoint], bound: float, before: float) -> int:
    """Index of the first tensor that diverges; ``len(trail)`` where none does.

    That is the first that is not finite, or whose error jumps over those before it and ``before``. Without a jump it is the
    first tensor past the bound, or, where none is, the first that reaches half of the largest error.
    """
    errors = [np.inf if point.error is None else point.error for point in trail]
    significant = min(bound, max(errors, default=0.0) * _SHARE)
    largest = before
    for index, error in enumerate(errors):
        if error == np.inf or (error >= significant and error >= _JUMP * largest and error > 0):
            return index
        largest = max(largest, error)
    reached = min(bound, max(errors, default=0.0) / 2)
    past = (index for index, error in enumerate(errors) if error >= reached > 0)
    return next(past, len(errors))


def _errors(
    items: Sequence[_Activation], candidate: Fetch, reference: Fetch, module_of: Mapping[str, str]
) -> list[TrailPoint]:
    """Compare the tensors, a limited number of them in each run."""
    points: list[TrailPoint] = []
    for start in range(0, len(items), _PER_RUN):
        names = [item.name for item in items[start : start + _PER_RUN]]
        want, got = reference(names), candidate(names)
        for item in items[start : start + _PER_RUN]:
            place = module_of.get(item.name) or item.node.name
            points.append(
                TrailPoint(tensor=item.name, place=place, error=tensor_error(got[item.name], want[item.name]))
            )
    return points


def tensor_error(candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> float | None:
    """Largest absolute difference over the reference's largest absolute value; None where it is not finite."""
    got, want = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    if got.shape != want.shape:
        return None
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0.0)) or 1.0
    error = float(np.abs(got - want)[finite].max(initial=0.0)) / scale
    return error if np.isfinite(error) else None
