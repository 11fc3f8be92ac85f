"""JSON Lines: one object a frame."""

from __future__ import annotations

import json

from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.lines import LineSink


class JsonlSink(LineSink):
    """Writes :meth:`~edgemamba.runtime.results.Result.to_json`, a line a result."""

    def line(self, result: Result) -> str:
        return json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
