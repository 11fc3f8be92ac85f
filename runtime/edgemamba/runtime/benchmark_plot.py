"""The figure of ``edgemamba bench``: latency and memory of each backend by batch and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemamba.runtime.benchmark import Measurement
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require


def plot(measurements: Sequence[Measurement], title: str, path: Path) -> None:
    """Draw bars of the median latency, with a whisker to the 95th percentile, above bars of the peak of memory.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SinkError: the file cannot be written, or its suffix is no picture format.
    """
    require("matplotlib", purpose="--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = [measurement for measurement in measurements if measurement.error is None]
    points = list(dict.fromkeys(measurement.configuration.point for measurement in done))
    backends = list(dict.fromkeys(measurement.configuration.backend for measurement in done))
    figure = Figure(figsize=(max(6.0, 1.6 + 1.1 * len(points) * max(1, len(backends))), 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    latency, memory = figure.subplots(2, 1, sharex=True)
    width = 0.8 / max(1, len(backends))
    for order, backend in enumerate(backends):
        mine = [measurement for measurement in done if measurement.configuration.backend == backend]
        at = [points.index(m.configuration.point) + (order - (len(backends) - 1) / 2) * width for m in mine]
        medians = [m.percentile(50) for m in mine]
        whiskers = [[0.0] * len(mine), [m.percentile(95) - m.percentile(50) for m in mine]]
        bars = latency.bar(at, medians, width, yerr=whiskers, capsize=3, label=backend)
        latency.bar_label(bars, [f"{median:.3g}" for median in medians], padding=2, fontsize=8)
        peaks = [(m.peak_bytes or 0) / 2**20 for m in mine]
        memory.bar_label(
            memory.bar(at, peaks, width, label=backend), [f"{p:.3g}" for p in peaks], padding=2, fontsize=8
        )
    latency.set(ylabel="latency, ms (median; whisker: p95)", title=title)
    memory.set(ylabel="peak memory above loaded, MiB")
    memory.set_xticks(range(len(points)), [f"batch {b}\n{h}x{w}" for b, h, w in points])
    for axes in (latency, memory):
        axes.margins(y=0.15)
        axes.grid(axis="y", alpha=0.3)
    latency.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SinkError(f"{path} cannot be written: {error}") from None
