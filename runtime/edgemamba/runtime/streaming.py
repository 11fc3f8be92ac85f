"""Frames in, results out: capture, inference and sinks run apart over bounded queues.

    source --(capture thread)--> queue --(the caller's thread: engine)--> queue --(sink thread)--> sinks

Files never lose a frame: the capture thread preprocesses each beside the engine, and waits for room. A live source keeps its
newest frames: when the queue is full one is dropped, and counted; the one that waits is preprocessed while the engine is busy.
Results come in the order of the frames. A frame that cannot be processed is skipped, said and counted; an engine that fails ends the
stream with its reason; whatever ends it, the sinks are finished with all results known by then.

The stages are in :mod:`edgemamba.runtime.pipeline`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.pipeline.loop import Options, Pipeline
from edgemamba.runtime.pipeline.strategy import Strategy, choose_strategy
from edgemamba.runtime.pipeline.watchdog import DEFAULT_STALL_SECONDS
from edgemamba.runtime.privacy import Redactor, guard_log
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import Sink
from edgemamba.runtime.sources import Source, open_source

__all__ = ["Strategy", "Stream", "stream"]

# Frames that wait between capture and engine besides a batch being gathered, where all are kept.
_FRAMES_WAITING = 4
# A batch of a source that is neither live nor of known length (a watched folder, a receiver) is not waited for any longer.
_PATIENCE = 1.0


def stream(
    source: str | int | Path | Source,
    engine: Engine,
    *,
    batch: int = 1,
    batch_wait: float | None = None,
    strategy: Strategy | str | None = None,
    buffer: int | None = None,
    top_k: int = 5,
    sinks: Sequence[Sink] = (),
    max_frames: int | None = None,
    stall_seconds: float | None = None,
    stop_on_stall: bool = False,
    include_phi: bool = False,
) -> Stream:
    """Run a source through an engine.

    Args:
        source: anything that :func:`~edgemamba.runtime.sources.open_source` takes, or an open source. Closed at the end.
        engine: from :func:`edgemamba.runtime.load`; not closed. Its ``preprocess`` may run in another thread while it infers.
        batch: frames per inference, at most.
        batch_wait: seconds after its first frame's arrival for which a batch is waited for; then it goes as it is. By default
            a live source gives what is waiting and is never waited for, a file of known length gives full batches until
            its end, and others are waited for one second.
        strategy: what happens to a frame that finds no room before the engine: ``WAIT``, ``DROP_OLDEST``, ``DROP_LATEST``
            (:class:`Strategy`). By default live sources drop the oldest; all others wait, and nothing else is allowed.
        buffer: frames that may wait before the engine. By default one batch of a live source, so that what the engine takes
            is fresh, and four more of others. More room lets a live source that comes in bursts (network) lose
            less, and be later.
        top_k: how many classes a result names.
        sinks: what to write; opened now, closed at the end.
        max_frames: end after this many frames of the source.
        stall_seconds: a source that gives nothing for so long has stalled: that is said in one line and counted. By default 10
            for live sources and never for others; 0: never.
        stop_on_stall: a stall ends the stream with an error, for whoever restarts it.
        include_phi: let sinks and log have metadata that may identify a patient; see :mod:`edgemamba.runtime.privacy`.

    Returns:
        An iterator of :class:`~edgemamba.runtime.results.Result`, with all metadata. Its ``report`` counts and times;
        ``close()`` (or a ``with`` block, or dropping it) ends it early and finishes the sinks.

    Raises:
        SourceError: the source cannot be opened, or may not drop; while iterating: nothing in it can be read, a live one
            stopped, or it stalled and ``stop_on_stall`` is set.
        SinkError: a sink cannot be opened or written.
        EngineError: while iterating: the engine failed.
        ValueError: ``batch``, ``buffer``, ``top_k`` or ``max_frames`` is below 1, or a time is negative.
    """
    for name, value in (("batch", batch), ("buffer", buffer), ("top_k", top_k), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    for name, seconds in (("batch_wait", batch_wait), ("stall_seconds", stall_seconds)):
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"{name} must be 0 or more seconds, not {seconds}")
    opened = source if isinstance(source, Source) else open_source(source)
    try:
        chosen = choose_strategy(strategy, opened)
    except BaseException:
        opened.close()
        raise
    if batch_wait is None:
        batch_wait = 0.0 if opened.live else _PATIENCE if opened.length is None else math.inf
    if stall_seconds is None:
        stall_seconds = DEFAULT_STALL_SECONDS if opened.live else 0.0
    options = Options(
        batch=batch,
        patience=batch_wait,
        top_k=top_k,
        max_frames=max_frames,
        strategy=chosen,
        # Fewer places than a batch has frames would leave the batch to be waited for in vain.
        room=max(batch, buffer or (batch if opened.live else _FRAMES_WAITING + batch)),
        stall_seconds=stall_seconds,
        stop_on_stall=stop_on_stall,
    )
    guard_log(include_phi)
    return Stream(Pipeline(opened, engine, tuple(sinks), options, Redactor(include_phi)))


class Stream:
    """The results of a running stream, and its report. See :func:`stream`."""

    def __init__(self, pipeline: Pipeline) -> None:
        # The generator holds the pipeline, and nothing of it holds this object: dropping it runs the generator's clean-up.
        self.report: StreamReport = pipeline.report
        self._pipeline = pipeline
        self._results = pipeline.results()
        next(self._results)  # runs to the first yield: sinks are open, so that even an unused stream finishes them

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        result = next(self._results)
        assert result is not None
        return result

    def stop(self) -> None:
        """Let the stream end after the batch in work, as if the source had ended: the loop over it comes to its end and the
        sinks are finished. May be called from any thread and from a signal handler."""
        self._pipeline.ask_to_stop()

    def abandon(self) -> None:
        """As :meth:`stop`, but wait for no sink that hangs: outputs may stay unfinished. For a second Ctrl-C."""
        self._pipeline.abandon()

    def close(self) -> None:
        """End the stream and finish the sinks; closing twice is harmless."""
        self._results.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
