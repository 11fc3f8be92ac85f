"""CSV (RFC 4180) for spreadsheets and data frames: a row a frame."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.lines import LineSink

_BEFORE = ("index", "timestamp", "source")
# A spreadsheet runs a cell that begins so as a formula; names of files and classes come from others.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CsvSink(LineSink):
    """Writes ``index, timestamp, source, class_1, probability_1, class_2, ... , latency_ms``: as many classes as a result
    names, best first. Texts that a spreadsheet would run as a formula get an apostrophe before them."""

    def heading(self, result: Result) -> str:
        ranks = range(1, len(result.top) + 1)
        names = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
        return _row((*_BEFORE, *names, "latency_ms"))

    def line(self, result: Result) -> str:
        frame = result.frame
        best = [cell for item in result.top for cell in (plain_text(item.name), f"{item.probability:.6f}")]
        return _row(
            (frame.index, f"{frame.timestamp:.6f}", plain_text(frame.source), *best, f"{1e3 * result.latency:.3f}")
        )


def plain_text(value: str) -> str:
    """``value`` as a cell that no spreadsheet runs: with an apostrophe before what would be a formula."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def _row(cells: Iterable[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()
