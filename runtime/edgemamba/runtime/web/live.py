"""What the page shows: the latest result as a JPEG, and how the stream has gone of late."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any

from edgemamba.runtime import __version__
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.extras import require
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.privacy import without_uids
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.timing import LatencyHistogram
from edgemamba.runtime.web.parity import parity_summary

__all__ = ["SAMPLE_SECONDS", "LiveView"]

#: The history's step, and how many steps are kept: five minutes.
SAMPLE_SECONDS = 1.0
_SAMPLES = 300
_LARGEST_SIDE = 1280
_QUALITY = 80
# A page is no archive: names of any length must fit a header and a line.
_LONGEST_NAME = 80


class LiveView:
    """Written by the stream, read by the server; holds one frame and five minutes of figures.

    Args:
        report: of the stream.
        engine: its model's name, backend and parity report are shown.
        include_phi: show the source's name as it is; see :mod:`edgemamba.runtime.privacy`.
    """

    def __init__(self, report: StreamReport, engine: Engine, include_phi: bool = False) -> None:
        self._report = report
        manifest = engine.bundle.manifest
        name = report.source.name if include_phi else without_uids(report.source.name)
        self._facts: dict[str, Any] = {
            "version": __version__,
            "model": manifest.model.name,
            "precision": manifest.precision,
            "input": f"{manifest.preprocessing.size[1]} x {manifest.preprocessing.size[0]} {manifest.preprocessing.dtype}",
            "backend": engine.backend,
            "source": _shortened(name, 2 * _LONGEST_NAME),
            "live": report.source.live,
            "strategy": report.strategy,
            "parity": parity_summary(engine.bundle),
        }
        self._latest: tuple[int, Result] | None = None
        self._jpeg: tuple[int, bytes, str] | None = None
        self._encoding = threading.Lock()
        self._samples: deque[dict[str, float]] = deque(maxlen=_SAMPLES)
        self._taken = 0
        self._before = (time.monotonic(), 0, 0, 0)
        self._latency: LatencyHistogram | None = None
        self.ended = False

    def show(self, result: Result) -> None:
        """Take a result; costs the stream nothing, for pictures are made when somebody looks."""
        number = self._latest[0] + 1 if self._latest else 1
        self._latest = (number, result)

    @property
    def number(self) -> int:
        """Of the latest result, from 1; 0 before the first."""
        return self._latest[0] if self._latest else 0

    def picture(self) -> tuple[int, bytes, str]:
        """The latest result: its number, its annotated frame as a JPEG, and its classes as ASCII JSON. Made once for all."""
        with self._encoding:
            latest = self._latest
            if latest is None:
                raise LookupError("there is no result yet")
            number, result = latest
            if self._jpeg is None or self._jpeg[0] != number:
                self._jpeg = (number, _jpeg(result), _classes(result))
            return self._jpeg

    def sample(self) -> None:
        """Add a step to the history; called by the server's clock."""
        report = self._report
        now, frames, dropped, skipped = time.monotonic(), report.frames, report.dropped, report.skipped
        then, frames_then, dropped_then, skipped_then = self._before
        self._before = (now, frames, dropped, skipped)
        latency = report.latency.since(None)
        recent, self._latency = latency.since(self._latency), latency
        self._taken += 1
        self._samples.append(
            {
                "n": self._taken,
                "fps": round((frames - frames_then) / max(now - then, 1e-3), 2),
                "p50": round(1e3 * recent.percentile(50), 2) if recent.count else 0.0,
                "p95": round(1e3 * recent.percentile(95), 2) if recent.count else 0.0,
                "dropped": dropped - dropped_then,
                "skipped": skipped - skipped_then,
            }
        )

    def state(self, since: int = 0) -> dict[str, Any]:
        """The figures so far, and the history's steps after number ``since``."""
        report = self._report
        return {
            **self._facts,
            "ended": self.ended,
            "number": self.number,
            "seconds": round(report.seconds, 1),
            "frames": report.frames,
            "dropped": report.dropped,
            "skipped": report.skipped,
            "stalls": report.stalls,
            "fps": round(report.fps, 2),
            "latency_ms": report.latency.summary().to_json(),
            "stages_ms": {name: stage.summary().to_json() for name, stage in report.stages.items()},
            "samples": [sample for sample in list(self._samples) if sample["n"] > since],
        }


def _jpeg(result: Result) -> bytes:
    cv2 = require("cv2", purpose="the web page")
    picture = annotate(result.frame.pixels, result.top)
    height, width = picture.shape[:2]
    scale = _LARGEST_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    good, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(encoded.tobytes()) if good else b""


def _classes(result: Result) -> str:
    frame = result.frame
    top = [[_shortened(item.name, _LONGEST_NAME), round(item.probability, 5)] for item in result.top[:10]]
    facts = {
        "index": frame.index,
        "timestamp": round(frame.timestamp, 3),
        "source": _shortened(frame.source, 2 * _LONGEST_NAME),
        "width": frame.width,
        "height": frame.height,
        "latency_ms": round(1e3 * result.latency, 2),
        "top": top,
    }
    return json.dumps(facts, ensure_ascii=True)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
