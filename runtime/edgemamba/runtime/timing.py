"""Latencies of a stream's stages, in bounded memory however long it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

# Durations are counted in classes that grow by 1 %, from a microsecond to a quarter of an hour: percentiles are exact to 0.5 %.
_SHORTEST = 1e-6
_GROWTH = math.log(1.01)
_CLASSES = 2080


@dataclass(frozen=True)
class LatencySummary:
    """Milliseconds: mean and greatest exact, percentiles to 0.5 %; ``total`` in seconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float
    total: float

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


class LatencyHistogram:
    """Durations of one stage. Written by one thread, read by any."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.max = 0.0
        self._counts = [0] * _CLASSES

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self.total += seconds
        self.max = max(self.max, seconds)
        index = int(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _GROWTH)
        self._counts[min(index, _CLASSES - 1)] += 1

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count the duration of a ``with`` block, also where it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - start)

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations do not exceed (nearest rank); 0 where there are none."""
        rank = math.ceil(self.count * percent / 100)
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return min(_SHORTEST * math.exp((index + 0.5) * _GROWTH), self.max)
        return self.max

    def since(self, earlier: LatencyHistogram | None) -> LatencyHistogram:
        """What was counted after ``earlier``, a former copy of this one; all of it (a copy) for None.

        ``max`` is the greatest since the beginning.
        """
        recent = LatencyHistogram()
        recent.max = self.max
        recent._counts = list(self._counts)
        recent.total = self.total
        if earlier is not None:
            recent._counts = [now - then for now, then in zip(recent._counts, earlier._counts, strict=True)]
            recent.total -= earlier.total
        recent.count = sum(recent._counts)  # not `self.count`, which another thread may just be changing
        return recent

    def at_most(self, bounds: Sequence[float]) -> list[int]:
        """How many durations do not exceed each of ``bounds`` (seconds, ascending), to the histogram's 1 %."""
        counts = list(self._counts)
        tallies, seen, index = [], 0, 0
        for bound in bounds:
            while index < _CLASSES and _SHORTEST * math.exp((index + 0.5) * _GROWTH) <= bound:
                seen += counts[index]
                index += 1
            tallies.append(seen)
        return tallies

    def summary(self) -> LatencySummary:
        """The figures so far."""
        mean = self.total / self.count if self.count else 0.0
        p50, p95, p99 = (1e3 * self.percentile(percent) for percent in (50, 95, 99))
        return LatencySummary(self.count, 1e3 * mean, p50, p95, p99, 1e3 * self.max, self.total)
