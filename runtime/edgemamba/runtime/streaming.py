"""Frames in, results out: capture, inference and sinks run apart over bounded queues.

    source --(capture thread)--> queue --(the caller's thread: engine)--> queue --(sink thread)--> sinks

Files never lose a frame: the capture thread preprocesses each beside the engine, and waits for room. A live source keeps its
newest frames: when the queue is full the oldest is dropped, and counted; only those that are taken are preprocessed. Results come in the order of the frames. A frame that cannot be processed is skipped, said and
counted; an engine that fails ends the stream with its reason; whatever ends it, the sinks are finished with all results known
by then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import EdgeMambaError, EngineError, SinkError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import Sink
from edgemamba.runtime.sources import Source, open_source

__all__ = ["Stream", "stream"]

# Frames that wait between capture and engine, besides a batch being gathered; results that wait for the sinks.
_FRAMES_WAITING = 4
_RESULTS_WAITING = 8
# How long a stopping stream waits for a capture that hangs inside a driver before it leaves it behind.
_PATIENCE = 5.0


def stream(
    source: str | int | Path | Source,
    engine: Engine,
    *,
    batch: int = 1,
    top_k: int = 5,
    sinks: Sequence[Sink] = (),
    max_frames: int | None = None,
) -> Stream:
    """Run a source through an engine.

    Args:
        source: anything that :func:`~edgemamba.runtime.sources.open_source` takes, or an open source. Closed at the end.
        engine: from :func:`edgemamba.runtime.load`; not closed. Its ``preprocess`` may run in another thread while it infers.
        batch: frames per inference. A file's last batch may be smaller; a live source gives whatever is waiting, up to
            this many, and is never waited for.
        top_k: how many classes a result names.
        sinks: what to write; opened now, closed at the end.
        max_frames: end after this many frames of the source.

    Returns:
        An iterator of :class:`~edgemamba.runtime.results.Result`. Its ``report`` counts and times; ``close()`` (or a
        ``with`` block, or dropping it) ends it early and finishes the sinks.

    Raises:
        SourceError: the source cannot be opened; while iterating: nothing in it can be read, or a live one stopped.
        SinkError: a sink cannot be opened or written.
        EngineError: while iterating: the engine failed.
        ValueError: ``batch``, ``top_k`` or ``max_frames`` is below 1.
    """
    for name, value in (("batch", batch), ("top_k", top_k), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    opened = source if isinstance(source, Source) else open_source(source)
    pipeline = _Pipeline(opened, engine, batch, top_k, tuple(sinks), max_frames)
    return Stream(pipeline)


class Stream:
    """The results of a running stream, and its report. See :func:`stream`."""

    def __init__(self, pipeline: _Pipeline) -> None:
        # The generator holds the pipeline, and nothing holds this object: dropping it runs the generator's clean-up.
        self.report: StreamReport = pipeline.report
        self._results = pipeline.results()
        next(self._results)  # runs to the first yield: sinks are open, so that even an unused stream finishes them

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        result = next(self._results)
        assert result is not None
        return result

    def close(self) -> None:
        """End the stream and finish the sinks; closing twice is harmless."""
        self._results.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Prepared:
    """A frame, the engine's input (1, H, W, C) for it, and the seconds that its preprocessing took."""

    frame: Frame
    pixels: NDArray[np.generic]
    seconds: float


class _Pipeline:
    """The three stages of one stream."""

    def __init__(
        self, source: Source, engine: Engine, batch: int, top_k: int, sinks: tuple[Sink, ...], max_frames: int | None
    ) -> None:
        self.report = StreamReport(source)
        self._engine = engine
        self._batch = batch
        self._top_k = top_k
        self._capture = _Capture(source, self._prepare, self.report, _FRAMES_WAITING + batch, max_frames)
        self._writer = _Writer(source, sinks, self.report)

    def results(self) -> Generator[Result | None, None, None]:
        """Open everything, yield None once, then the results; clean up however it ends."""
        failure: BaseException | None = None
        try:
            self._writer.start()
            yield None
            self.report.start()
            self._capture.start()
            while prepared := self._capture.take(self._batch):
                for result in self._infer(prepared):
                    self._writer.put(result)
                    self.report.frames += 1
                    yield result
        except GeneratorExit:  # the caller has enough; what a sink has to say on closing is still of interest
            pass
        except BaseException as error:
            failure = error
            raise
        finally:
            try:
                self._capture.stop()
            finally:
                sink_failure = self._writer.stop()
                self.report.stop()
            if sink_failure is not None and failure is None:
                raise sink_failure

    def _prepare(self, frame: Frame) -> _Prepared | None:
        """Preprocess a frame; None, said and counted, for one that is no picture."""
        start = time.perf_counter()
        try:
            pixels = self._engine.preprocess([frame.pixels])
        except ValueError as error:
            self._skip(frame, str(error))
            return None
        seconds = time.perf_counter() - start
        self.report.stages["preprocess"].add(seconds)
        return _Prepared(frame, pixels, seconds)

    def _infer(self, prepared: list[_Prepared]) -> list[Result]:
        """Classify a batch; frames without a finite output are left out."""
        start = time.perf_counter()
        pixels = [item.pixels for item in prepared]
        good = [item.frame for item in prepared]
        try:
            with self.report.stages["engine"].measure():
                outputs = self._engine.infer(np.concatenate(pixels) if len(pixels) > 1 else pixels[0])
        except EdgeMambaError:
            raise
        except Exception as error:
            raise EngineError(f"{self._engine.backend} failed at frame {good[0].index}: {error}") from error
        predictions = self._engine.predictions(outputs)
        latency = time.perf_counter() - start + sum(item.seconds for item in prepared)
        results = []
        for row, frame in enumerate(good):
            if np.isfinite(predictions.logits[row]).all():
                top = tuple(predictions.top(row, self._top_k))
                results.append(Result(frame, top, predictions.logits[row], latency))
            else:
                self._skip(frame, "the engine's output is not finite")
        return results

    def _skip(self, frame: Frame, reason: str) -> None:
        self.report.source.skipped.add(f"{frame.source} frame {frame.index}: {reason}")


class _Capture:
    """Reads the source in a thread of its own, into a queue that waits (files) or drops its oldest (live sources)."""

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Frame], _Prepared | None],
        report: StreamReport,
        room: int,
        max_frames: int | None,
    ) -> None:
        self._source = source
        self._prepare = prepare
        self._report = report
        self._room = room
        self._max_frames = max_frames
        self._waiting: deque[_Prepared | Frame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopping = False
        self._error: BaseException | None = None
        # A daemon: a driver that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="edgemamba-capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, most: int) -> list[_Prepared]:
        """Up to ``most`` frames; of a file exactly so many until its end. Empty at the end.

        Raises:
            SourceError: the source failed; after all frames read before.
        """
        enough = 1 if self._source.live else most
        taken: list[_Prepared] = []
        while not taken:
            with self._changed:
                while len(self._waiting) < enough and not self._ended:
                    self._changed.wait(0.1)  # with a time-out, so that Ctrl-C is heard on every platform
                items = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
                self._changed.notify_all()
            if not items:
                break
            prepared = (self._prepare(item) if isinstance(item, Frame) else item for item in items)
            taken = [item for item in prepared if item is not None]
        if not taken and self._error is not None:
            raise self._error
        return taken

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread.ident is None:
            self._source.close()
        else:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            with self._source:
                frames = iter(self._source)
                count = 0
                while not self._stopping and count != self._max_frames:
                    start = time.perf_counter()
                    frame = next(frames, None)
                    if frame is None:
                        break
                    self._report.stages["source"].add(time.perf_counter() - start)
                    count += 1
                    item = frame if self._source.live else self._prepare(frame)
                    if item is not None:
                        self._put(item)
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: _Prepared | Frame) -> None:
        with self._changed:
            if self._source.live:
                if len(self._waiting) >= self._room:
                    self._waiting.popleft()
                    self._report.dropped += 1
            else:
                while len(self._waiting) >= self._room and not self._stopping:
                    self._changed.wait()
            if not self._stopping:
                self._waiting.append(item)
                self._changed.notify_all()


class _Writer:
    """Hands results to the sinks in a thread of its own."""

    def __init__(self, source: Source, sinks: tuple[Sink, ...], report: StreamReport) -> None:
        self._source = source
        self._sinks = sinks
        self._report = report
        self._queue: queue.Queue[Result | None] = queue.Queue(_RESULTS_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edgemamba-sinks", daemon=True)

    def start(self) -> None:
        """Open the sinks; those opened before one that fails are closed by :meth:`stop`."""
        for sink in self._sinks:
            sink.open(self._source)
        if self._sinks:
            self._thread.start()

    def put(self, result: Result) -> None:
        """Wait for room and queue a result.

        Raises:
            SinkError: a sink failed on an earlier one.
        """
        if not self._sinks:
            return
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(result, timeout=0.1)
                return
            except queue.Full:
                continue

    def stop(self) -> BaseException | None:
        """Write what is queued and close every sink; returns the first failure."""
        if self._thread.ident is not None:
            while self._thread.is_alive() and self._error is None:
                try:
                    self._queue.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue
            self._thread.join()
        for sink in self._sinks:
            try:
                sink.close()
            except SinkError as error:
                self._error = self._error or error
        return self._error

    def _run(self) -> None:
        try:
            while (result := self._queue.get()) is not None:
                with self._report.stages["sink"].measure():
                    for sink in self._sinks:
                        sink.write(result)
        except BaseException as error:
            self._error = error
