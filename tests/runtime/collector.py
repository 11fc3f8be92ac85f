"""A sink that keeps what it was given."""

from __future__ import annotations

from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import Sink
from edgemamba.runtime.sources import Source


class Collector(Sink):
    def __init__(self) -> None:
        self.results: list[Result] = []

    def open(self, source: Source) -> None: ...

    def write(self, result: Result) -> None:
        self.results.append(result)

    def close(self) -> None: ...
