"""What a stream did: counts, latencies of its stages, and where its time went."""

from __future__ import annotations

import time
from typing import Any

from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.timing import LatencyHistogram

#: In the order in which a frame passes them. All but the engine run in threads of their own beside it; of a live source,
#: preprocessing runs before the engine in the same thread.
STAGES = ("source", "preprocess", "engine", "sink")


class StreamReport:
    """Counts and times of one stream; filled while it runs.

    Attributes:
        source: the stream's source; its ``skipped`` counts what could not be read or processed, and says why.
        frames: results given.
        dropped: frames of a live source that were replaced by newer ones before the engine was free.
        stalls: how often the source gave nothing for the watchdog's time.
        strategy: what the full queue before the engine does (WAIT, DROP_OLDEST, DROP_LATEST).
        stages: durations: of ``source``, ``preprocess`` and ``sink`` for each frame, of ``engine`` for each batch.
        latency: for each result, from the moment the source gave the frame until its result was known: waiting included.
    """

    def __init__(self, source: Source, strategy: str = "WAIT") -> None:
        self.source = source
        self.strategy = strategy
        self.frames = 0
        self.dropped = 0
        self.stalls = 0
        self.latency = LatencyHistogram()
        self.stages = {name: LatencyHistogram() for name in STAGES}
        self._started: float | None = None
        self._stopped: float | None = None

    def start(self) -> None:
        """The loop begins: the first frame is about to be read."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """The loop has ended: the last result is written and the sinks are closed."""
        self._stopped = time.perf_counter()

    @property
    def skipped(self) -> int:
        """Frames and files that could not be read or processed."""
        return self.source.skipped.count

    @property
    def seconds(self) -> float:
        """Wall-clock time from the first frame's reading to the closing of the sinks, or to now."""
        if self._started is None:
            return 0.0
        return (self._stopped or time.perf_counter()) - self._started

    @property
    def fps(self) -> float:
        """Results a second of wall-clock time."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def overhead(self) -> float:
        """Share of the wall-clock time in which the engine did not run: reading, preprocessing and writing, as far as they do
        not run beside it, and waiting."""
        return max(0.0, 1 - self.stages["engine"].total / self.seconds) if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures; latencies in milliseconds."""
        return {
            "source": self.source.describe(),
            "frames": self.frames,
            "skipped": self.skipped,
            "skip_reasons": self.source.skipped.reasons,
            "dropped": self.dropped,
            "stalls": self.stalls,
            "strategy": self.strategy,
            "seconds": round(self.seconds, 4),
            "frames_per_second": round(self.fps, 3),
            "overhead_share": round(self.overhead, 4),
            "stages_ms": {name: histogram.summary().to_json() for name, histogram in self.stages.items()},
            "latency_ms": self.latency.summary().to_json(),
        }
