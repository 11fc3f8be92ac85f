"""``parity.html``: the report for a reader. One file, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray

from edgemamba.export.bisection import Divergence, TrailPoint
from edgemamba.export.parity import BackendParity, OutputParity, ParityReport
from edgemamba.runtime.extras import require

_WIDTH, _HEIGHT, _MARGIN, _FOOT = 560, 150, 40, 34
_THUMBNAIL = 160


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in pixels. ``over``: it lies beyond the tolerance."""

    x: float
    y: float
    width: float
    height: float
    count: int
    text: str
    over: bool


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws, in pixels of a ``width`` x ``height`` box."""

    width: int
    height: int
    baseline: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...] = ()
    bars: tuple[Bar, ...] = ()
    line: str = ""
    points: tuple[tuple[float, float, str, bool], ...] = ()
    limit: float | None = None


def write_html(report: ParityReport, path: Path, frames: NDArray[np.generic] | None = None) -> None:
    """Render a report.

    Args:
        report: the figures.
        path: the file to write.
        frames: (N, H, W, 3), the inputs; the worst is shown. None shows none.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgemamba.export", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(figure=_figure, percent=_percent)
    html = environment.get_template("parity.html.j2").render(
        report=report,
        histograms={
            (backend.backend, output.name): histogram(output)
            for backend in report.backends
            for output in backend.outputs
        },
        trails={
            backend.backend: trail(_path(backend.divergence), backend.divergence.tensor)
            for backend in report.backends
            if backend.divergence and len(_path(backend.divergence)) > 1
        },
        worst={backend.backend: _worst(backend, frames) for backend in report.backends},
        speed=_speed(report),
    )
    path.write_text(html, encoding="utf-8")


def histogram(output: OutputParity) -> Chart:
    """How many elements have which error, in units of the tolerance (logarithmic)."""
    edges, counts = output.histogram_edges, output.histogram
    step = (_WIDTH - 2 * _MARGIN) / len(counts)
    baseline = _HEIGHT - _FOOT
    highest = max(max(counts), 1)
    bars = []
    for index, count in enumerate(counts):
        # A square root keeps single outliers visible beside thousands.
        height = (baseline - 14) * math.sqrt(count / highest)
        text = f"{count} between {edges[index]:.0e} and {edges[index + 1]:.0e} of the tolerance"
        over = edges[index] >= 0.999
        bars.append(Bar(_MARGIN + index * step, baseline - height, step - 1, height, count, text, over))
    ticks = tuple(
        Tick(_MARGIN + index * step, f"{edge:g}" if 1e-3 <= edge <= 1e3 else f"{edge:.0e}")
        for index, edge in enumerate(edges)
        if index % 2 == 0
    )
    limit = _MARGIN + step * min(range(len(edges)), key=lambda index: abs(math.log10(edges[index])))
    return Chart(_WIDTH, _HEIGHT, baseline, ticks, bars=tuple(bars), limit=limit)


def trail(points: Sequence[TrailPoint], culprit: str) -> Chart:
    """The error over depth, on a logarithmic axis from 1e-8 to 10; what is not finite is drawn at the top."""
    lowest, highest = -8.0, 1.0
    baseline = _HEIGHT - _FOOT
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(points) - 1)

    def y(error: float | None) -> float:
        level = highest if error is None else math.log10(max(error, 10**lowest))
        return baseline - (baseline - 14) * (min(level, highest) - lowest) / (highest - lowest)

    drawn = tuple(
        (_MARGIN + index * step, y(point.error), f"{point.place}: {_figure(point.error)}", point.tensor == culprit)
        for index, point in enumerate(points)
    )
    every = max(1, math.ceil(len(points) / 8))
    return Chart(
        _WIDTH,
        _HEIGHT,
        baseline,
        x_ticks=tuple(Tick(drawn[index][0], str(index)) for index in range(0, len(points), every)),
        y_ticks=tuple(Tick(y(10.0**power), f"1e{power:+d}") for power in range(-8, 2, 3)),
        line=" ".join(f"{x:.1f},{height:.1f}" for x, height, _, _ in drawn),
        points=drawn,
    )


def _path(divergence: Divergence) -> tuple[TrailPoint, ...]:
    """The search to draw: over the whole depth, or within the bracket where the first had few tensors to look at."""
    return max(divergence.trail, divergence.details, key=len) if len(divergence.trail) < 6 else divergence.trail


def _worst(backend: BackendParity, frames: NDArray[np.generic] | None) -> str | None:
    """The input with the largest error, as a data URI."""
    if frames is None or not backend.outputs:
        return None
    picture = frames[backend.outputs[0].worst_sample]
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    elif picture.dtype != np.uint8:
        picture = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    cv2 = require("cv2", purpose="pictures in reports")
    scale = _THUMBNAIL / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, png = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}" if done else None


def _speed(report: ParityReport) -> dict[str, float | None]:
    """PyTorch's latency over each backend's."""
    torch_ms = report.reference.get("latency_ms")
    return {
        backend.backend: torch_ms / backend.latency_ms if torch_ms and backend.latency_ms else None
        for backend in report.backends
    }


def _figure(value: float | None) -> str:
    """A number with two significant digits; what JSON cannot hold was NaN or infinite."""
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}" if not 0.01 <= abs(value) < 1e4 else f"{value:.3g}"


def _percent(value: float) -> str:
    """A share in per cent, never rounded up to 100."""
    return f"{math.floor(value * 1000) / 10:.1f} %"
