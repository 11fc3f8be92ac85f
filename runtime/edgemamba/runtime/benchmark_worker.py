"""The process that :mod:`edgemamba.runtime.benchmark` starts for each configuration. Speaks JSON lines.

The first line tells what to load; each one after it how long to run (the answer holds the latencies); an empty object asks
for the peak of memory. A warm-up precedes the first run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import memory
from edgemamba.runtime.engines import Engine, load
from edgemamba.runtime.errors import EdgeMambaError

_WARM_UP_RUNS = 3
_WARM_UP_SECONDS = 0.3


class Worker:
    """An engine, its input, and the memory that it held before it first ran."""

    def __init__(self, bundle: str, backend: str, batch: int, height: int, width: int, threads: int) -> None:
        start = time.perf_counter()
        self.engine: Engine = load(bundle, backend, threads=threads)
        self.load_seconds = time.perf_counter() - start
        card = self.engine.bundle.manifest.input
        self.frames = _frames((batch, height, width, *(int(extent) for extent in card.shape[3:])), card.dtype)
        self.loaded = memory.resident_bytes()
        self.can_tell_peak = memory.reset_peak() and self.loaded is not None
        self.warm = False

    def describe(self) -> dict[str, Any]:
        """The answer to the first line."""
        return {"load_seconds": self.load_seconds, "loaded_bytes": self.loaded, "engine": self.engine.describe()}

    def run(self, seconds: float, iterations: int | None) -> list[float]:
        """Latencies in milliseconds of so many runs, or of as many as fit into so many seconds (one at least)."""
        if not self.warm:
            self._times(_WARM_UP_SECONDS, None, at_least=_WARM_UP_RUNS)
            self.warm = True
        return self._times(seconds, iterations, at_least=1)

    def peak(self) -> int | None:
        """Bytes held above the loaded engine at most."""
        peak = memory.peak_bytes()
        if not self.can_tell_peak or peak is None or self.loaded is None:
            return None
        return max(0, peak - self.loaded)

    def _times(self, seconds: float, iterations: int | None, at_least: int) -> list[float]:
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while True:
            count = len(latencies)
            if count >= iterations if iterations is not None else count >= at_least and time.perf_counter() >= end:
                return latencies
            start = time.perf_counter_ns()
            self.engine.infer(self.frames)
            latencies.append((time.perf_counter_ns() - start) / 1e6)


def _frames(shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    """Seeded noise over the full scale of the dtype."""
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return rng.random(shape, np.float32).astype(dtype, copy=False)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer each line with one line; an error is an answer too."""

    def answer(facts: dict[str, Any]) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    worker: Worker | None = None
    for line in questions:
        question = json.loads(line)
        try:
            if worker is None:
                worker = Worker(**question)
                answer(worker.describe())
            elif question:
                answer({"latencies_ms": worker.run(**question)})
            else:
                answer({"peak_bytes": worker.peak()})
        except (EdgeMambaError, MemoryError) as error:
            answer({"error": str(error) or "out of memory"})
            return


def main() -> None:
    """Serve the parent; what libraries print to stdout goes to stderr, so that answers stay readable."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
