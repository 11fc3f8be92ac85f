"""The figures of a comparison: what is measured between an engine and PyTorch, and when it counts as equal.

The vocabulary is Polygraphy's (per-output absolute and relative tolerance); the bounds are DESIGN section 6's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgemamba.export.bisection import Divergence

PARITY_JSON = "parity.json"
PARITY_HTML = "parity.html"
SCHEMA_VERSION = 1

# Edges of the error histogram, in units of the tolerance: half-decades from 1e-6 to 100.
_EDGES = tuple(float(edge) for edge in 10.0 ** np.arange(-6, 2.01, 0.5))


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(_Frozen):
    """An output passes where ``|candidate - reference| <= max(atol, rtol * |reference|)`` for every element.

    Attributes:
        atol, rtol: absolute and relative bound.
        top1: share of the frames whose best class must be the reference's.
    """

    atol: float = Field(gt=0)
    rtol: float = Field(ge=0)
    top1: float = Field(default=0.995, ge=0, le=1)

    @classmethod
    def of(cls, precision: str) -> Tolerance:
        """The project's bound for a precision: 1e-4 * max(1, |logit|) for fp32, 2e-2 * max(1, |logit|) for fp16."""
        bound = 1e-4 if precision == "fp32" else 2e-2
        return cls(atol=bound, rtol=bound)

    def bound(self, reference: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The error allowed for each element."""
        return np.maximum(self.atol, self.rtol * np.abs(np.asarray(reference, np.float64)))


class OutputParity(_Frozen):
    """One output of one backend against the reference, over all samples.

    Attributes:
        max_abs_error, mean_abs_error: of ``candidate - reference``.
        max_rel_error: largest ``|candidate - reference| / max(1, |reference|)``.
        max_of_tolerance: largest error in units of what the tolerance allows; above 1 fails.
        cosine: smallest cosine similarity of a sample's output with the reference's.
        worst_sample: index of the sample with the largest error in units of the tolerance.
        not_finite: count of NaN and infinite values of the candidate.
        histogram: counts of elements by error in units of the tolerance; see ``histogram_edges``. The first bin also holds
            smaller errors and the last larger ones.
        sample_errors: each sample's largest absolute error.
    """

    name: str
    shape: tuple[int, ...]
    max_abs_error: float | None
    mean_abs_error: float | None
    max_rel_error: float | None
    max_of_tolerance: float | None
    cosine: float | None
    worst_sample: int
    not_finite: int
    histogram_edges: tuple[float, ...] = _EDGES
    histogram: tuple[int, ...]
    sample_errors: tuple[float | None, ...]
    passed: bool


class Agreement(_Frozen):
    """Whether two sets of logits choose the same classes.

    Attributes:
        top1: share of the frames with the same best class, ties counted as agreement.
        disagreements: indices of the frames that do not agree.
        ties: indices of the frames whose best class differs where the reference's two candidates lie closer together than
            the tolerance could tell apart: neither answer is wrong there.
        top5: mean share of the reference's five best classes (all, where there are fewer) that the candidate's five best hold.
        passed: disagreements are within ``1 - tolerance.top1`` of the frames (with fewer than 200 frames, at the usual 99.5 %,
            that means none).
    """

    top1: float
    top5: float
    disagreements: tuple[int, ...]
    ties: tuple[int, ...]
    passed: bool


class BackendParity(_Frozen):
    """One backend's result. ``error`` says why it could not be run at all; then the figures are absent."""

    backend: str
    description: dict[str, Any] = Field(default_factory=dict)
    outputs: tuple[OutputParity, ...] = ()
    agreement: Agreement | None = None
    latency_ms: float | None = None
    error: str | None = None
    passed: bool
    divergence: Divergence | None = None


class InputsCard(_Frozen):
    """What was compared on. ``source`` is a folder's or file's name, without its path."""

    kind: str
    source: str
    samples: tuple[str, ...]
    batch: int
    seed: int
    skipped: tuple[str, ...] = ()


class ParityReport(_Frozen):
    """Everything that ``parity.json`` holds.

    Attributes:
        reference: what the backends were held against: PyTorch in float32, its latency, and where its weights came from.
        latency: how ``latency_ms`` was measured.
        left_out: backends that were not asked for by name and cannot be used here, with the reason.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    model: str
    precision: str
    model_sha256: str
    created: str
    inputs: InputsCard
    tolerance: Tolerance
    reference: dict[str, Any]
    backends: tuple[BackendParity, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    latency: str = "median of single frames, milliseconds"
    tool_versions: dict[str, str] = Field(default_factory=dict)
    passed: bool

    def max_abs_error(self) -> dict[str, float]:
        """Largest absolute error by backend, for those that have a finite one."""
        return {
            backend.backend: output.max_abs_error
            for backend in self.backends
            for output in backend.outputs
            if output.name == "logits" and output.max_abs_error is not None
        }


def compare_output(
    name: str, candidate: NDArray[np.generic], reference: NDArray[np.generic], tolerance: Tolerance
) -> OutputParity:
    """Compare two arrays (B, ...) of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"{name}: shape {candidate.shape} where the reference has {reference.shape}")
    got, want = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    not_finite = int((~np.isfinite(got)).sum())
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    ratio = np.where(np.isfinite(error), error / tolerance.bound(want), np.inf)
    by_sample = ratio.reshape(len(ratio), -1).max(axis=1, initial=0.0)
    counts, _ = np.histogram(np.clip(ratio, _EDGES[0], _EDGES[-1]), bins=_EDGES)
    passed = not_finite == 0 and bool((ratio <= 1).all())
    return OutputParity(
        name=name,
        shape=candidate.shape,
        max_abs_error=_finite(error.max(initial=0.0)),
        mean_abs_error=_finite(error.mean()) if error.size else 0.0,
        max_rel_error=_finite((error / np.maximum(1.0, np.abs(want))).max(initial=0.0)),
        max_of_tolerance=_finite(ratio.max(initial=0.0)),
        cosine=min((_cosine(a, b) for a, b in zip(got, want, strict=True)), default=1.0) if not not_finite else None,
        worst_sample=int(by_sample.argmax()) if len(by_sample) else 0,
        not_finite=not_finite,
        histogram=tuple(int(count) for count in counts),
        sample_errors=tuple(_finite(sample.max(initial=0.0)) for sample in error),
        passed=passed,
    )


def compare_classes(candidate: NDArray[np.generic], reference: NDArray[np.generic], tolerance: Tolerance) -> Agreement:
    """Compare the classes that two sets of logits (B, num_classes) choose."""
    got, want = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    rows = np.arange(len(want))
    best, expected = got.argmax(axis=1), want.argmax(axis=1)
    different = best != expected
    # Either logit may be off by its bound; two that are closer than both bounds together cannot be told apart.
    bound = tolerance.bound(want)
    margin = want[rows, expected] - want[rows, best]
    tied = different & (margin <= bound[rows, expected] + bound[rows, best]) & np.isfinite(got).all(axis=1)
    wrong = different & ~tied
    count = max(1, len(want))
    k = min(5, want.shape[1])
    overlap = [
        len(set(np.argsort(-a, kind="stable")[:k]) & set(np.argsort(-b, kind="stable")[:k])) / k
        for a, b in zip(got, want, strict=True)
    ]
    return Agreement(
        top1=1 - float(wrong.sum()) / count,
        top5=float(np.mean(overlap)) if overlap else 1.0,
        disagreements=tuple(int(index) for index in np.flatnonzero(wrong)),
        ties=tuple(int(index) for index in np.flatnonzero(tied)),
        passed=bool(wrong.sum() <= (1 - tolerance.top1) * count + 1e-9),
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(np.dot(a.ravel(), b.ravel()) / norms)


def _finite(value: float | np.floating[Any]) -> float | None:
    """A number that JSON can hold; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None
