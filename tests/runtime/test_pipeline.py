"""What a full queue does, how batches are gathered, and the watchdog; sources are stand-ins for cameras, named so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.collector import Collector
from runtime.waiting import wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.errors import SinkError, SourceError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.pipeline.frame_queue import FrameQueue, Waiting
from edgemamba.runtime.pipeline.strategy import Strategy, choose_strategy
from edgemamba.runtime.results import Result
from edgemamba.runtime.sources import Source

PIXELS = np.zeros((8, 8, 3), np.uint8)


class MockCamera(Source):
    """Gives frames when the test opens a gate: ``script`` is a list of numbers (frames to give at once) and gates to wait for."""

    live = True

    def __init__(self, script: list[int | threading.Event], *, live: bool = True) -> None:
        super().__init__("mock camera")
        self.live = live
        self.script = script
        self.given = 0

    def __iter__(self) -> Iterator[Frame]:
        for step in self.script:
            if isinstance(step, threading.Event):
                assert step.wait(20)
                continue
            for _ in range(step):
                self.given += 1
                yield Frame(PIXELS, self.given - 1, (self.given - 1) / 30, self.name)


def waiting(index: int, arrived: float = 0.0) -> Waiting:
    return Waiting(Frame(PIXELS, index, 0, "x"), arrived)


# --------------------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("strategy", "kept", "dropped"),
    [(Strategy.DROP_OLDEST, [3, 4, 5], 3), (Strategy.DROP_LATEST, [0, 1, 2], 3)],
)
def test_what_a_full_queue_keeps(strategy: Strategy, kept: list[int], dropped: int) -> None:
    drops: list[int] = []
    frames = FrameQueue(3, strategy, lambda: drops.append(1))
    for index in range(6):
        frames.put(waiting(index))
    frames.end()
    assert [item.frame.index for item in frames.take(9, 0, lambda: True)] == kept
    assert len(drops) == dropped


def test_wait_makes_the_source_wait_and_close_lets_it_go() -> None:
    frames = FrameQueue(2, Strategy.WAIT, lambda: pytest.fail("nothing may be dropped"))
    put: list[int] = []

    def fill() -> None:
        for index in range(5):
            frames.put(waiting(index))
            put.append(index)

    thread = threading.Thread(target=fill)
    thread.start()
    wait_for(lambda: len(put) == 2)
    assert [item.frame.index for item in frames.take(2, 9, lambda: True)] == [0, 1]
    wait_for(lambda: len(put) == 4)
    frames.close()
    thread.join(10)
    assert not thread.is_alive()


def test_live_sources_drop_their_oldest_by_default_and_others_never() -> None:
    live, receiver = MockCamera([]), MockCamera([], live=False)
    assert choose_strategy(None, live) is Strategy.DROP_OLDEST
    assert choose_strategy(None, receiver) is Strategy.WAIT
    assert choose_strategy("drop_latest", live) is Strategy.DROP_LATEST
    assert choose_strategy("WAIT", live) is Strategy.WAIT
    with pytest.raises(SourceError, match=r"DROP_OLDEST drops frames, and mock camera is no live source: .* use WAIT"):
        choose_strategy(Strategy.DROP_OLDEST, receiver)
    with pytest.raises(SourceError, match="strategy 'LAZY' is unknown; choose one of: WAIT, DROP_OLDEST, DROP_LATEST"):
        choose_strategy("LAZY", live)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    # The engine works on frame 0 while nine more come; one may wait.
    [("DROP_OLDEST", [0, 9]), ("DROP_LATEST", [0, 1]), ("WAIT", list(range(10)))],
)
def test_strategies_of_a_mock_camera(strategy: str, expected: list[int], colour_engine: Any) -> None:
    busy = threading.Event()
    camera = MockCamera([1, busy, 9])
    results = stream(camera, colour_engine, strategy=strategy)

    def hold(number: int) -> None:
        if number == 0:
            busy.set()
            wait_for(lambda: camera.given >= 3 if strategy == "WAIT" else results.report.dropped == 8)

    colour_engine.before_batch = hold
    assert [result.frame.index for result in results] == expected
    assert results.report.dropped == 10 - len(expected)
    assert results.report.to_json()["strategy"] == strategy


# The share of the time between frames that preprocessing may take: the mock camera's frames come as soon as they can.
_SHARE = "edgemamba.runtime.pipeline.capture._SPARE_SHARE"


@pytest.mark.parametrize("quick", [True, False])
def test_what_waits_for_a_busy_engine_is_preprocessed_meanwhile(
    quick: bool, colour_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once; not where that takes too long."""
    monkeypatch.setattr(_SHARE, 1e9 if quick else -1.0)
    busy, threads = threading.Event(), []
    preprocess = colour_engine.preprocess
    monkeypatch.setattr(
        colour_engine,
        "preprocess",
        lambda frames: threads.append(threading.current_thread().name) or preprocess(frames),
    )
    camera = MockCamera([1, busy, 1])
    results = stream(camera, colour_engine)

    def hold(number: int) -> None:
        if number == 0:
            threads.clear()
            busy.set()
            wait_for(lambda: camera.given == 2 and (len(threads) == 1 or not quick))

    colour_engine.before_batch = hold
    assert [result.frame.index for result in results] == [0, 1]
    assert threads == ["edgemamba-capture" if quick else threading.current_thread().name]
    assert results.report.dropped == 0


def test_a_waiting_frame_that_cannot_be_preprocessed_is_counted_once(
    colour_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_SHARE, 1e9)
    busy, looked_at = threading.Event(), []
    preprocess = colour_engine.preprocess

    def fail_at_the_second(frames: Any) -> Any:
        looked_at.append(1)
        if len(looked_at) == 2:
            raise ValueError("odd")
        return preprocess(frames)

    monkeypatch.setattr(colour_engine, "preprocess", fail_at_the_second)
    results = stream(MockCamera([1, busy, 1]), colour_engine)

    def hold(number: int) -> None:
        busy.set()
        wait_for(lambda: len(looked_at) == 2)

    colour_engine.before_batch = hold
    assert [result.frame.index for result in results] == [0]
    assert results.report.to_json()["skipped"] == 1
    assert len(looked_at) == 2


def test_a_larger_buffer_keeps_a_burst(colour_engine: Any) -> None:
    busy = threading.Event()
    camera = MockCamera([1, busy, 5])

    def hold(number: int) -> None:
        if number == 0:
            busy.set()
            wait_for(lambda: camera.given == 6)
            time.sleep(0.05)

    colour_engine.before_batch = hold
    results = stream(camera, colour_engine, buffer=5)
    assert [result.frame.index for result in results] == list(range(6))
    assert results.report.dropped == 0


# ------------------------------------------------------------------------------------------------------------------ batches


def test_a_live_batch_is_waited_for_as_long_as_asked(colour_engine: Any) -> None:
    gate = threading.Event()
    timer = threading.Timer(0.2, gate.set)
    timer.start()
    list(stream(MockCamera([2, gate, 2]), colour_engine, batch=4, batch_wait=10))
    assert colour_engine.batches == [4]


def test_a_live_batch_goes_when_its_time_is_up(colour_engine: Any) -> None:
    gate = threading.Event()
    collector = Collector()
    results = stream(MockCamera([2, gate, 1]), colour_engine, batch=4, batch_wait=0.5, sinks=[collector])
    first = next(results)
    assert first.frame.index == 0
    assert colour_engine.batches == [2]  # the others have not come yet
    gate.set()
    assert [result.frame.index for result in results] == [1, 2]
    assert colour_engine.batches == [2, 1]


def test_a_receiver_that_rests_gives_the_batch_that_it_has(colour_engine: Any) -> None:
    """A watched folder is not live, but may rest for hours with half a batch."""
    gate = threading.Event()
    results = stream(MockCamera([3, gate, 1], live=False), colour_engine, batch=8)
    assert [next(results).frame.index for _ in range(3)] == [0, 1, 2]
    gate.set()
    assert [result.frame.index for result in results] == [3]


@pytest.mark.parametrize("wrong", [{"batch_wait": -1}, {"stall_seconds": -1}, {"batch_wait": float("nan")}])
def test_negative_times_are_refused(wrong: dict[str, float], colour_engine: Any) -> None:
    with pytest.raises(ValueError, match="must be 0 or more seconds"):
        stream(MockCamera([1]), colour_engine, **wrong)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- watchdog, stop


def test_a_stall_is_one_line_and_so_is_its_end(colour_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    with caplog.at_level(logging.WARNING, "edgemamba.runtime"):
        results = stream(MockCamera([1, gate, 2]), colour_engine, stall_seconds=0.8, buffer=4)
        assert next(results).frame.index == 0
        timer = threading.Timer(1.8, gate.set)
        timer.start()
        assert [result.frame.index for result in results] == [1, 2]
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "mock camera: no frame for 0.8 s; still waiting"
    assert lines[1].startswith("mock camera: frames again, after ")
    assert len(lines) == 2
    assert results.report.stalls == 1


def test_a_stall_can_end_the_stream(colour_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.runtime.pipeline.capture._PATIENCE", 0.1)
    gate = threading.Event()
    collector = Collector()
    results = stream(
        MockCamera([2, gate]), colour_engine, sinks=[collector], buffer=2, stall_seconds=0.8, stop_on_stall=True
    )
    with pytest.raises(SourceError, match=r"mock camera: no frame for 0\.8 s: the source has stalled"):
        list(results)
    assert len(collector.results) == 2  # what came before is written
    gate.set()


def test_a_source_left_hanging_is_said(colour_engine: Any, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("edgemamba.runtime.pipeline.capture._PATIENCE", 0.1)
    gate = threading.Event()
    with stream(MockCamera([1, gate]), colour_engine) as results:
        next(results)
    assert "mock camera does not answer; it is left behind" in caplog.text
    gate.set()


def test_stop_from_another_thread_finishes_the_sinks(colour_engine: Any) -> None:
    collector = Collector()
    results = stream(MockCamera([10**6], live=False), colour_engine, sinks=[collector])
    timer = threading.Timer(0.2, results.stop)
    timer.start()
    seen = [result.frame.index for result in results]
    assert seen == list(range(len(seen)))
    assert [result.frame.index for result in collector.results] == seen


def test_stop_while_nothing_comes(colour_engine: Any) -> None:
    gate = threading.Event()
    results = stream(MockCamera([1, gate]), colour_engine)
    next(results)
    threading.Timer(0.1, results.stop).start()
    threading.Timer(0.5, gate.set).start()
    assert list(results) == []


def test_a_sink_that_wants_no_more_ends_the_stream(colour_engine: Any) -> None:
    class Window(Collector):
        """A stand-in for a window that is closed after three frames."""

        in_callers_thread = True

        def write(self, result: Result) -> None:
            assert threading.current_thread() is threading.main_thread()
            super().write(result)
            self.wants_more = len(self.results) < 3

    other = Collector()
    results = stream(MockCamera([100], live=False), colour_engine, sinks=[Window(), other])
    assert [result.frame.index for result in results] == [0, 1, 2]
    assert len(other.results) == 3


# ------------------------------------------------------------------------------------------------------------- bad frames


@pytest.mark.parametrize("error", [ValueError("no picture"), RuntimeError("the resampler broke"), MemoryError()])
def test_whatever_is_wrong_with_one_frame_it_is_skipped(error: Exception, colour_engine: Any, monkeypatch: Any) -> None:
    usual = colour_engine.preprocess

    def preprocess(frames: list[Any]) -> Any:
        if frames[0].max():
            raise error
        return usual(frames)

    class WithBad(MockCamera):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                yield Frame(np.full_like(PIXELS, 9), frame.index, 0, self.name) if frame.index % 10 == 5 else frame

    monkeypatch.setattr(colour_engine, "preprocess", preprocess)
    results = stream(WithBad([30], live=False), colour_engine, batch=4)
    assert [result.frame.index for result in results] == [index for index in range(30) if index % 10 != 5]
    assert results.report.skipped == 3
    reason = str(error) or "MemoryError"
    assert results.report.to_json()["skip_reasons"][0] == f"mock camera frame 5: {reason}"


def test_a_damaged_file_every_tenth(tmp_path: Path, colour_engine: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for index in range(40):
        path = tmp_path / f"{index:03}.png"
        cv2.imwrite(str(path), picture)
        if index % 10 == 3:
            path.write_bytes(path.read_bytes()[:-400])
    collector = Collector()
    results = stream(tmp_path, colour_engine, batch=4, sinks=[collector])
    expected = [f"{index:03}.png" for index in range(40) if index % 10 != 3]
    assert [result.frame.source for result in results] == expected
    assert [result.frame.source for result in collector.results] == expected
    assert results.report.skipped == 4


def test_latency_counts_the_waiting(colour_engine: Any) -> None:
    """Frame 1 waits while the engine holds frame 0: its latency is longer than the engine's own time for it."""
    busy = threading.Event()
    camera = MockCamera([1, busy, 1])

    def hold(number: int) -> None:
        if number == 0:
            busy.set()
            wait_for(lambda: camera.given == 2)
            time.sleep(0.2)

    colour_engine.before_batch = hold
    results = stream(camera, colour_engine)
    assert len(list(results)) == 2
    summary = results.report.latency.summary()
    assert summary.count == 2
    assert summary.p50 >= 150  # milliseconds; both frames waited for the 0.2 s
    assert results.report.to_json()["latency_ms"]["count"] == 2


# ------------------------------------------------------------------------------------- sources that keep what they gave


class KeepingSource(MockCamera):
    """As the DICOM receiver: frames count as processed when it is told so."""

    def __init__(self, script: list[Any]) -> None:
        super().__init__(script, live=False)
        self.confirmed = False
        self.safe: list[int] = []

    def done(self, frame: Frame) -> None:
        self.safe.append(frame.index)


@pytest.mark.parametrize("with_sink", [True, False])
def test_frames_are_confirmed_in_order_when_they_are_written(with_sink: bool, colour_engine: Any) -> None:
    source, collector = KeepingSource([9]), Collector()
    results = stream(source, colour_engine, batch=4, sinks=[collector] if with_sink else [])
    assert source.confirmed
    first = next(results)
    assert first.frame.index == 0
    if not with_sink:
        assert source.safe == []  # the caller still works on it
    list(results)
    assert source.safe == list(range(9))


def test_what_a_failing_sink_did_not_take_is_not_confirmed(colour_engine: Any) -> None:
    class Full(Collector):
        def write(self, result: Result) -> None:
            if result.frame.index == 3:
                raise SinkError("disk full")

    source = KeepingSource([100])
    with pytest.raises(SinkError, match="disk full"):
        list(stream(source, colour_engine, sinks=[Full()]))
    assert source.safe == [0, 1, 2]


def test_a_waiting_source_is_interrupted(colour_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Receiver(MockCamera):
        """Waits for ever, unless it is interrupted."""

        def interrupt(self) -> None:
            gate.set()

    gate = threading.Event()
    with stream(Receiver([1, gate], live=False), colour_engine) as results:
        next(results)
    assert "does not answer" not in caplog.text
