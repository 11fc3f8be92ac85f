"""The stages put together: from frames to results, in the caller's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import EdgeMambaError, EngineError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.pipeline.capture import Capture
from edgemamba.runtime.pipeline.frame_queue import Waiting
from edgemamba.runtime.pipeline.strategy import Strategy
from edgemamba.runtime.pipeline.watchdog import Watchdog
from edgemamba.runtime.pipeline.writer import Writer
from edgemamba.runtime.privacy import Redactor
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source

__all__ = ["Confirming", "Options", "Pipeline"]


@runtime_checkable
class Confirming(Protocol):
    """A source that keeps what it gave until the results are safe, and gives it again after a crash (a DICOM receiver).

    Attributes:
        confirmed: set by the pipeline: :meth:`done` will be called.
    """

    confirmed: bool

    def done(self, frame: Frame) -> None:
        """The results of this frame and of all before it are safe."""


@dataclass(frozen=True)
class Options:
    """How a pipeline runs; see :func:`edgemamba.runtime.stream`, where each is explained.

    ``patience``, ``stall_seconds``: seconds; ``room``: frames that may wait before the engine.
    """

    batch: int
    patience: float
    top_k: int
    max_frames: int | None
    strategy: Strategy
    room: int
    stall_seconds: float
    stop_on_stall: bool


class Pipeline:
    """The three stages of one stream."""

    def __init__(
        self, source: Source, engine: Engine, sinks: tuple[Sink, ...], options: Options, redactor: Redactor
    ) -> None:
        self.report = StreamReport(source, options.strategy.value)
        self._engine = engine
        self._options = options
        watchdog = Watchdog(self.report, options.stall_seconds, options.stop_on_stall)
        self._capture = Capture(
            source, self._prepare, self.report, watchdog, options.strategy, options.room, options.max_frames
        )
        done: Callable[[Frame], None] = _nothing
        if isinstance(source, Confirming):
            source.confirmed, done = True, source.done
        self._writer = Writer(sinks, self.report, engine, redactor, done)

    def ask_to_stop(self) -> None:
        """End after the batch in work; may be called from any thread and from a signal handler."""
        self._capture.ask_to_stop()

    def abandon(self) -> None:
        """End without waiting for sinks that hang; may be called from any thread and from a signal handler."""
        self._capture.ask_to_stop()
        self._writer.abandon()

    def results(self) -> Generator[Result | None, None, None]:
        """Open everything, yield None once, then the results; clean up however it ends."""
        failure: BaseException | None = None
        options = self._options
        try:
            self._writer.start()
            yield None
            self.report.start()
            self._capture.start()
            wanted = True
            while wanted and (items := self._capture.take(options.batch, options.patience)):
                for result in self._infer(items):
                    wanted = self._writer.put(result) and wanted
                    self.report.frames += 1
                    yield result
                    self._writer.given(result)
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

    def _prepare(self, item: Waiting) -> Waiting | None:
        """Preprocess a frame; None, said and counted, for one that cannot be."""
        start = time.perf_counter()
        try:
            pixels = self._engine.preprocess([item.frame.pixels])
        except EngineError:
            raise
        except Exception as error:  # one bad frame, whatever is wrong with it, must not end a stream of days
            self._skip(item.frame, str(error) or type(error).__name__)
            return None
        seconds = time.perf_counter() - start
        self.report.stages["preprocess"].add(seconds)
        return replace(item, pixels=pixels, seconds=seconds)

    def _infer(self, items: list[Waiting]) -> list[Result]:
        """Classify a batch; frames without a finite output are left out."""
        start = time.perf_counter()
        pixels = [item.pixels for item in items if item.pixels is not None]
        try:
            with self.report.stages["engine"].measure():
                outputs = self._engine.infer(np.concatenate(pixels) if len(pixels) > 1 else pixels[0])
        except EdgeMambaError:
            raise
        except Exception as error:
            raise EngineError(f"{self._engine.backend} failed at frame {items[0].frame.index}: {error}") from error
        predictions = self._engine.predictions(outputs)
        end = time.perf_counter()
        latency = end - start + sum(item.seconds for item in items)
        results = []
        for row, item in enumerate(items):
            logits = predictions.logits[row]
            if not np.isfinite(logits).all():
                self._skip(item.frame, "the engine's output is not finite")
                continue
            self.report.latency.add(end - item.arrived)
            top = tuple(predictions.top(row, self._options.top_k))
            results.append(Result(item.frame, top, logits, latency))
        return results

    def _skip(self, frame: Frame, reason: str) -> None:
        self.report.source.skipped.add(f"{frame.source} frame {frame.index}: {reason}")


def _nothing(frame: Frame) -> None:
    """For sources that keep nothing."""
