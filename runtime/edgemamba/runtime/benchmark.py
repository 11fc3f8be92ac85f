"""Latency, throughput and memory of a bundle, one process for each configuration.

A process of its own keeps the peaks of memory apart, and one backend's libraries and thread pools away from another's.
The backends of one batch and size run in turns, so that a slow minute of the machine strikes all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.errors import EngineError

ROUNDS = 5
_WORKER = "edgemamba.runtime.benchmark_worker"


@dataclass(frozen=True)
class Configuration:
    """One thing to measure. ``threads``: 0 lets the backend choose."""

    backend: str
    batch: int
    height: int
    width: int
    threads: int = 0

    @property
    def point(self) -> tuple[int, int, int]:
        """Batch, height and width: what must be equal for backends to be compared."""
        return self.batch, self.height, self.width


@dataclass(frozen=True)
class Budget:
    """How long to measure: this many seconds, or (if given) this many runs, for each configuration."""

    seconds: float = 5.0
    iterations: int | None = None


@dataclass
class Measurement:
    """What one configuration did.

    Attributes:
        latencies_ms: of each run, in the order in which they ran, warm-up not included.
        load_seconds: from the bundle's path to an engine that can run.
        loaded_bytes: held by the process once it is loaded, before the first run; None where the system does not tell.
        peak_bytes: the most that the runs, warm-up included, held above that; None where the system does not tell.
        engine: what the engine says of itself.
        error: why there is nothing to tell, in one line.
    """

    configuration: Configuration
    latencies_ms: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    loaded_bytes: int | None = None
    peak_bytes: int | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def percentile(self, q: float) -> float:
        """Milliseconds within which ``q`` percent of the runs ended."""
        return float(np.percentile(self.latencies_ms, q))

    @property
    def throughput(self) -> float:
        """Frames a second, over all runs."""
        return 1e3 * self.configuration.batch * len(self.latencies_ms) / sum(self.latencies_ms)

    def to_json(self) -> dict[str, Any]:
        """The figures, without the single latencies."""
        facts: dict[str, Any] = asdict(self.configuration)
        if self.error is not None:
            return facts | {"error": self.error}
        return facts | {
            "runs": len(self.latencies_ms),
            "latency_ms": {
                "min": min(self.latencies_ms),
                "mean": float(np.mean(self.latencies_ms)),
                **{f"p{q}": self.percentile(q) for q in (50, 90, 95, 99)},
            },
            "frames_per_second": self.throughput,
            "load_seconds": self.load_seconds,
            "loaded_bytes": self.loaded_bytes,
            "peak_bytes_above_loaded": self.peak_bytes,
            "engine": self.engine,
        }


def plan(
    bundle: Bundle,
    backends: Iterable[str],
    batches: Sequence[int] = (1,),
    sizes: Sequence[tuple[int, int]] = (),
    threads: int = 0,
) -> list[Configuration]:
    """All combinations, those that are compared with each other side by side.

    Args:
        sizes: (height, width) in pixels; empty: the size that the bundle's preprocessing makes.

    Raises:
        EngineError: the bundle's batch or size is fixed, and another one is asked for.
    """
    card = bundle.manifest.input
    names = list(backends)
    for batch in batches:
        if isinstance(card.shape[0], int) and batch != card.shape[0]:
            raise EngineError(f"{bundle.path}: the batch is fixed at {card.shape[0]}; {batch} cannot be measured")
    for size in sizes:
        for extent, asked in zip(card.shape[1:3], size, strict=True):
            if isinstance(extent, int) and asked != extent:
                fixed = "x".join(map(str, card.shape[1:3]))
                raise EngineError(
                    f"{bundle.path}: the input is fixed at {fixed}; {size[0]}x{size[1]} needs a bundle exported for it, or "
                    "with dynamic height and width"
                )
    return [
        Configuration(backend, batch, height, width, threads)
        for height, width in sizes or [bundle.manifest.preprocessing.size]
        for batch in batches
        for backend in names
    ]


def measure(
    bundle: Bundle,
    configurations: Sequence[Configuration],
    budget: Budget = Budget(),
    progress: Callable[[Configuration], None] = lambda configuration: None,
) -> Iterator[Measurement]:
    """Measure each configuration; one that fails is a measurement with ``error`` set.

    Args:
        progress: called whenever a configuration is about to run for one of its :data:`ROUNDS` rounds.
    """
    points = dict.fromkeys(configuration.point for configuration in configurations)
    for point in points:
        yield from _measure_point(bundle, [c for c in configurations if c.point == point], budget, progress)


def _measure_point(
    bundle: Bundle,
    configurations: Sequence[Configuration],
    budget: Budget,
    progress: Callable[[Configuration], None],
) -> list[Measurement]:
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(bundle, configuration)) for configuration in configurations]
        for worker in workers:
            worker.load()
        for number in range(ROUNDS):
            for worker in workers:
                progress(worker.measurement.configuration)
                worker.run(budget.seconds / ROUNDS, _share(budget.iterations, number))
        for worker in workers:
            worker.finish()
        return [worker.measurement for worker in workers]


def _share(iterations: int | None, number: int) -> int | None:
    """How many of the runs belong to a round."""
    if iterations is None:
        return None
    return iterations * (number + 1) // ROUNDS - iterations * number // ROUNDS


class _Worker:
    """A process that has loaded one configuration and runs when told to. After an error it is left alone."""

    def __init__(self, bundle: Bundle, configuration: Configuration) -> None:
        self._bundle = bundle
        self.measurement = Measurement(configuration)
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def load(self) -> None:
        """Have the engine loaded."""
        answer = self._ask({"bundle": str(self._bundle.path), **asdict(self.measurement.configuration)})
        self.measurement.load_seconds = answer.get("load_seconds", 0.0)
        self.measurement.loaded_bytes = answer.get("loaded_bytes")
        self.measurement.engine = answer.get("engine", {})

    def run(self, seconds: float, iterations: int | None) -> None:
        answer = self._ask({"seconds": seconds, "iterations": iterations})
        self.measurement.latencies_ms.extend(answer.get("latencies_ms", []))

    def finish(self) -> None:
        self.measurement.peak_bytes = self._ask({}).get("peak_bytes")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One line there, one line back."""
        if self.measurement.error is not None:
            return {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._death()}
        self.measurement.error = answer.get("error")
        return answer

    def _death(self) -> str:
        """Why the process is gone: the last thing it said, or the signal that ended it."""
        _, said = self._process.communicate()
        code = self._process.returncode
        if code == -9:
            return "the process was killed; most likely it ran out of memory"
        last = said.strip().rpartition("\n")[2]
        return last or (
            f"the process was ended by signal {-code}" if code < 0 else f"the process ended with status {code}"
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
