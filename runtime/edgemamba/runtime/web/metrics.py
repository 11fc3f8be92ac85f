"""A stream's figures for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from edgemamba.runtime import __version__
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.extras import require
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.timing import LatencyHistogram

__all__ = ["StreamMetrics"]

# Upper bounds of the histograms' buckets, in seconds.
_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class StreamMetrics:
    """Reads the running report when it is scraped; the stream itself counts only the classes.

    Metrics: ``edgemamba_results_total``, ``edgemamba_frames_dropped_total``, ``edgemamba_frames_skipped_total``,
    ``edgemamba_source_stalls_total``, ``edgemamba_class_results_total{class}`` (by the best class),
    ``edgemamba_last_result_timestamp_seconds``, ``edgemamba_stage_seconds{stage}`` and ``edgemamba_latency_seconds`` (histograms),
    ``edgemamba_stream_info``, and prometheus_client's of the process (memory, descriptors, CPU time).
    """

    def __init__(self, report: StreamReport, engine: Engine) -> None:
        self._report = report
        self._classes: Counter[str] = Counter()
        self._last = 0.0
        self._info = {
            "version": __version__,
            "model": engine.bundle.manifest.model.name,
            "precision": engine.bundle.manifest.precision,
            "backend": engine.backend,
        }
        self._core = require("prometheus_client.core", purpose="the metrics endpoint")
        client = require("prometheus_client", purpose="the metrics endpoint")
        self._registry = client.CollectorRegistry()
        self._registry.register(self)
        client.ProcessCollector(registry=self._registry)
        self._expose = require("prometheus_client.exposition").choose_encoder

    def count(self, result: Result) -> None:
        """Note a result's class and time."""
        self._classes[result.label] += 1
        self._last = time.time()

    def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the ``Accept`` header asks for."""
        encoder, kind = self._expose(accept)
        return encoder(self._registry), kind

    def collect(self) -> Iterator[Any]:
        """Called by the registry at each scrape."""
        core, report = self._core, self._report
        counters = {
            "edgemamba_results": ("Results given", report.frames),
            "edgemamba_frames_dropped": (
                "Frames of a live source that found no room before the engine",
                report.dropped,
            ),
            "edgemamba_frames_skipped": ("Frames that could not be read or processed", report.skipped),
            "edgemamba_source_stalls": ("Times that the source gave nothing for the watchdog's time", report.stalls),
        }
        for name, (text, value) in counters.items():
            yield core.CounterMetricFamily(name, text, value=value)
        classes = core.CounterMetricFamily("edgemamba_class_results", "Results by best class", labels=["class"])
        for label, count in self._classes.copy().items():
            classes.add_metric([label], count)
        yield classes
        yield core.GaugeMetricFamily("edgemamba_last_result_timestamp_seconds", "When the last result came", self._last)
        stages = core.HistogramMetricFamily("edgemamba_stage_seconds", "Durations of the stages", labels=["stage"])
        for name, stage in report.stages.items():
            stages.add_metric([name], *_buckets(stage))
        yield stages
        latency = core.HistogramMetricFamily("edgemamba_latency_seconds", "From a frame's capture to its result")
        latency.add_metric([], *_buckets(report.latency))
        yield latency
        info = core.InfoMetricFamily("edgemamba_stream", "What runs")
        info.add_metric([], self._info)
        yield info


def _buckets(histogram: LatencyHistogram) -> tuple[list[tuple[str, float]], float]:
    copy = histogram.since(None)
    tallies = copy.at_most(_BOUNDS)
    pairs: list[tuple[str, float]] = [(repr(bound), tally) for bound, tally in zip(_BOUNDS, tallies, strict=True)]
    return [*pairs, ("+Inf", copy.count)], copy.total
