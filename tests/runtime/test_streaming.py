"""The stream: order, batching, what is dropped, skipped and raised, and that it ends cleanly however it ends."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.waiting import wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.errors import EngineError, SinkError, SourceError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import Sink
from edgemamba.runtime.sources import Source
from edgemamba.runtime.timing import LatencyHistogram


class ArraySource(Source):
    """Frames from memory; the index is written into the pixels' blue channel."""

    def __init__(self, count: int, *, live: bool = False, pause: float = 0, fail_at: int | None = None) -> None:
        super().__init__("memory")
        self.live = live
        self.length = None if live else count
        self.count = count
        self.pause = pause
        self.fail_at = fail_at
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            if index == self.fail_at:
                raise SourceError("memory failed")
            time.sleep(self.pause)
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[..., index % 3] = 255
            self.given += 1
            yield Frame(pixels, index, index / 10, "memory")

    def close(self) -> None:
        self.closed += 1


class ListSink(Sink):
    """Keeps the indices of what it was given."""

    path = Path("list")

    def __init__(self, *, fail_at: int | None = None, fail_open: bool = False, pause: float = 0) -> None:
        self.written: list[int] = []
        self.state = "new"
        self.fail_at = fail_at
        self.fail_open = fail_open
        self.pause = pause

    def open(self, source: Source) -> None:
        if self.fail_open:
            raise SinkError("cannot open")
        self.state = "open"

    def write(self, result: Result) -> None:
        assert self.state == "open"
        time.sleep(self.pause)
        if result.frame.index == self.fail_at:
            raise SinkError("disk full")
        self.written.append(result.frame.index)

    def close(self) -> None:
        self.state = "closed"


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_for(lambda: not any(thread.name.startswith("edgemamba-") for thread in threading.enumerate()))


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_every_frame_in_order(batch: int, colour_engine: Any) -> None:
    source, sink = ArraySource(17), ListSink(pause=0.001)
    with stream(source, colour_engine, batch=batch, sinks=[sink], top_k=2) as results:
        seen = list(results)
    assert [result.frame.index for result in seen] == sink.written == list(range(17))
    assert [result.label for result in seen[:3]] == ["red", "green", "blue"]
    assert seen[0].probability == pytest.approx(math.exp(8) / (math.exp(8) + 2), abs=1e-5)
    assert all(len(result.top) == 2 for result in seen)
    assert colour_engine.batches == [min(batch, 17 - start) for start in range(0, 17, batch)]
    assert source.closed
    assert sink.state == "closed"
    report = results.report
    assert (report.frames, report.dropped, report.skipped) == (17, 0, 0)
    assert {name: stage.count for name, stage in report.stages.items()} == {
        "source": 17,
        "preprocess": 17,
        "engine": len(colour_engine.batches),
        "sink": 17,
    }
    assert 0 < report.stages["engine"].total < report.seconds
    assert 0 < report.overhead < 1


def test_files_wait_for_a_slow_engine(colour_engine: Any) -> None:
    """Capture may run ahead by its queue, and no further: memory stays bounded."""
    source = ArraySource(60)
    ahead = []
    colour_engine.before_batch = lambda number: (time.sleep(0.002), ahead.append(source.given - number))
    assert len(list(stream(source, colour_engine))) == 60
    assert max(ahead) <= 8


def test_live_sources_keep_the_newest_and_count_drops(colour_engine: Any) -> None:
    source = ArraySource(100, live=True, pause=0.001)
    colour_engine.before_batch = lambda number: time.sleep(0.02)
    results = stream(source, colour_engine)
    indices = [result.frame.index for result in results]
    assert indices == sorted(indices)
    assert indices[-1] == 99
    assert 5 < len(indices) < 90
    assert results.report.dropped == 100 - len(indices)
    assert results.report.skipped == 0


def test_live_batches_take_what_is_waiting(colour_engine: Any) -> None:
    source = ArraySource(30, live=True, pause=0.001)
    colour_engine.before_batch = lambda number: time.sleep(0.01)
    list(stream(source, colour_engine, batch=4))
    assert max(colour_engine.batches) <= 4
    assert max(colour_engine.batches) > 1


def test_max_frames(colour_engine: Any) -> None:
    source = ArraySource(1000)
    assert len(list(stream(source, colour_engine, max_frames=5, batch=2))) == 5
    assert source.given == 5


def test_a_bad_frame_is_skipped_and_counted(colour_engine: Any) -> None:
    class WithBadFrames(ArraySource):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                yield Frame(np.zeros((2, 2, 7), np.uint8), frame.index, 0, "memory") if frame.index == 2 else frame

    sink = ListSink()
    results = stream(WithBadFrames(6), colour_engine, batch=3, sinks=[sink])
    assert [result.frame.index for result in results] == sink.written == [0, 1, 3, 4, 5]
    assert results.report.skipped == 1
    assert "memory frame 2: a picture is" in results.report.to_json()["skip_reasons"][0]


def test_output_that_is_not_finite_is_no_result(colour_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)
    monkeypatch.setattr(colour_engine, "infer", lambda frames: {"logits": logits})
    results = stream(ArraySource(2), colour_engine, batch=2)
    assert [result.frame.index for result in results] == [0]
    assert results.report.skipped == 1


def test_a_failing_engine_stops_with_its_reason_and_keeps_what_was_written(colour_engine: Any) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise RuntimeError("out of memory")

    colour_engine.before_batch = fail
    source, sink = ArraySource(50), ListSink(pause=0.005)
    with pytest.raises(EngineError, match="numpy failed at frame 6: out of memory"):
        list(stream(source, colour_engine, batch=2, sinks=[sink]))
    assert sink.written == [0, 1, 2, 3, 4, 5]
    assert sink.state == "closed"
    assert source.closed


def test_a_failing_source_gives_its_frames_first(colour_engine: Any) -> None:
    sink = ListSink()
    with pytest.raises(SourceError, match="memory failed"):
        list(stream(ArraySource(9, fail_at=5), colour_engine, batch=3, sinks=[sink]))
    assert sink.written == [0, 1, 2, 3, 4]


def test_a_failing_sink_ends_the_stream_and_the_others_are_closed(colour_engine: Any) -> None:
    full, other = ListSink(fail_at=4), ListSink()
    with pytest.raises(SinkError, match="disk full"):
        list(stream(ArraySource(500), colour_engine, sinks=[other, full]))
    assert other.written == [0, 1, 2, 3, 4]
    assert (full.state, other.state) == ("closed", "closed")


def test_a_defect_of_one_sink_on_closing_leaves_no_other_unfinished(colour_engine: Any) -> None:
    class Broken(ListSink):
        def close(self) -> None:
            raise ZeroDivisionError

    last = ListSink()
    with pytest.raises(ZeroDivisionError):
        list(stream(ArraySource(3), colour_engine, sinks=[Broken(), last]))
    assert last.state == "closed"


def test_a_sink_that_cannot_open_leaves_nothing_open(colour_engine: Any) -> None:
    source, first = ArraySource(5), ListSink()
    with pytest.raises(SinkError, match="cannot open"):
        stream(source, colour_engine, sinks=[first, ListSink(fail_open=True)])
    assert source.closed
    assert first.state == "closed"


@pytest.mark.parametrize("how", ["close", "with", "drop", "unused"])
def test_ending_early_finishes_the_sinks(how: str, colour_engine: Any) -> None:
    source, sink = ArraySource(10_000), ListSink()
    results = stream(source, colour_engine, sinks=[sink])
    if how != "unused":
        for result in results:
            if result.frame.index == 6:
                break
    if how == "with":
        with results:
            pass
    elif how == "drop":
        del results
    else:
        results.close()
        results.close()
    assert sink.state == "closed"
    assert source.closed
    assert sink.written == list(range(0 if how == "unused" else 7))


def test_interruption_in_the_engine_keeps_what_was_written(colour_engine: Any) -> None:
    def interrupt(number: int) -> None:
        if number == 4:
            raise KeyboardInterrupt

    colour_engine.before_batch = interrupt
    sink = ListSink(pause=0.005)
    with pytest.raises(KeyboardInterrupt):
        list(stream(ArraySource(100), colour_engine, sinks=[sink]))
    assert sink.written == [0, 1, 2, 3]
    assert sink.state == "closed"


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"top_k": 0}, {"max_frames": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int], colour_engine: Any) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        stream(ArraySource(1), colour_engine, **wrong)


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=200))
def test_percentiles(durations: list[float]) -> None:
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.add(duration)
    for percent in (50, 95, 99):
        exact = sorted(durations)[math.ceil(len(durations) * percent / 100) - 1]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0051)
    summary = histogram.summary()
    assert summary.p50 <= summary.p95 <= summary.p99 <= summary.max == 1e3 * max(durations)
    assert summary.total == pytest.approx(sum(durations))


def test_empty_histogram() -> None:
    assert LatencyHistogram().summary().to_json() == dict.fromkeys(
        ("count", "mean", "p50", "p95", "p99", "max", "total"), 0
    )
