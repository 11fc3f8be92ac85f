"""Does a stream that runs for days grow? Many frames through a tiny engine, with every kind of sink that stays open.

    python benchmarks/soak.py [--frames 200000] [--json FILE] [--check]

A live source gives 64x64 frames as fast as they are taken (strategy WAIT, so that each counts), ONNX Runtime classifies them,
JSON Lines and CSV are written, and the web page is served and looked at by two clients: one fetches frames, figures and metrics
all the time, the other connects, sends garbage and goes. Every hundredth frame cannot be processed. Resident memory,
threads and file descriptors are read every thousand results; what they are after a tenth of the frames is the warm state. Bars: memory
grows by less than 20 MB from there to the end, and the numbers of threads and descriptors at the end are those of before the
stream.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemamba.runtime import load, stream
from edgemamba.runtime.bundle import MODEL, Manifest, ModelCard, TensorCard, sha256, write_manifest
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.memory import resident_bytes
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.provenance import provenance
from edgemamba.runtime.sinks import open_sink
from edgemamba.runtime.sources import Source

BAR_MB = 20.0
SIDE = 32
RECIPE = Preprocessing(size=(SIDE, SIDE), resize="squash")
EVERY = 1000
BAD_EVERY = 100


class SyntheticCamera(Source):
    """A stand-in for a camera: the same 16 noise pictures again and again, and every hundredth is none."""

    live = True

    def __init__(self, frames: int) -> None:
        super().__init__("synthetic camera")
        generator = np.random.default_rng(0)
        self._pictures = generator.integers(0, 256, (16, 64, 64, 3), np.uint8)
        self._bad = np.zeros((2, 2, 7), np.uint8)
        self._frames = frames

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._frames):
            bad = index % BAD_EVERY == BAD_EVERY - 1
            yield Frame(self._bad if bad else self._pictures[index % 16].copy(), index, index / 1000, self.name)


@dataclass(frozen=True)
class Reading:
    """What the process held after so many results."""

    results: int
    rss_mb: float
    threads: int
    descriptors: int


def read(results: int) -> Reading:
    gc.collect()
    rss = resident_bytes() or 0
    return Reading(results, round(rss / 1e6, 3), threading.active_count(), len(os.listdir("/proc/self/fd")))


def write_bundle(folder: Path, recipe: Preprocessing) -> Path:
    """A graph that takes the mean of each colour, of inputs that ``recipe`` makes: an engine that costs next to nothing."""
    import onnx

    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["frames"], ["values"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("frames", types.UINT8, ["batch", *recipe.size, 3])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", 3])],
        [helper.make_tensor("axes", types.INT64, [2], [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / MODEL)
    manifest = Manifest(
        model=ModelCard(name="colour"),
        input=TensorCard(name="frames", dtype="uint8", shape=("batch", *recipe.size, 3)),
        outputs=(TensorCard(name="logits", dtype="float32", shape=("batch", 3)),),
        preprocessing=recipe,
        class_names=("red", "green", "blue"),
        precision="fp32",
        opset=20,
        files={MODEL: sha256(folder / MODEL)},
    )
    write_manifest(folder, manifest)
    return folder


def look(port: int, done: threading.Event) -> None:
    """A client that looks at everything, ten times a second."""
    while not done.wait(0.1):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            for path in ("/frame.jpg", "/state.json", "/metrics"):
                connection.request("GET", path)
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()


def disturb(port: int, done: threading.Event) -> None:
    """A client that sends garbage and goes, five times a second."""
    generator = np.random.default_rng(1)
    while not done.wait(0.2):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(generator.bytes(500))
        except OSError:
            pass


def soak(bundle: Path, folder: Path, frames: int) -> tuple[list[Reading], dict[str, Any]]:
    """Run the stream; the readings, the first from before it and the last from after it, and its report."""
    web = open_sink("web://127.0.0.1:0")
    sinks = [open_sink(folder / "o.jsonl"), open_sink(folder / "o.csv"), web]
    with load(bundle, "ort-function", threads=1) as engine:
        engine.infer(np.zeros((1, SIDE, SIDE, 3), np.uint8))
        readings = [read(0)]
        done = threading.Event()
        with stream(SyntheticCamera(frames), engine, sinks=sinks, strategy="WAIT", batch=4) as results:
            port = int(web.url.rpartition(":")[2].strip("/"))  # type: ignore[attr-defined]
            clients = [threading.Thread(target=task, args=(port, done)) for task in (look, disturb)]
            for client in clients:
                client.start()
            for _ in results:
                if (results.report.frames + 1) % EVERY == 0:
                    readings.append(read(results.report.frames + 1))
        done.set()
        for client in clients:
            client.join()
        readings.append(read(results.report.frames))
    lines = sum(1 for _ in (folder / "o.jsonl").open())
    assert lines == results.report.frames, (lines, results.report.frames)
    return readings, results.report.to_json()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    import logging

    logging.disable(logging.WARNING)  # a line for each of the frames that are skipped on purpose

    start = time.time()
    with tempfile.TemporaryDirectory() as name:
        readings, report = soak(write_bundle(Path(name) / "bundle", RECIPE), Path(name), options.frames)
    before, after, during = readings[0], readings[-1], readings[1:-1]
    warm = during[len(during) // 10]
    growth = max(reading.rss_mb for reading in during[len(during) * 9 // 10 :]) - warm.rss_mb
    expected = options.frames - options.frames // BAD_EVERY
    figures = {
        "frames": options.frames,
        "results": report["frames"],
        "skipped": report["skipped"],
        "dropped": report["dropped"],
        "seconds": round(time.time() - start, 1),
        "rss_warm_mb": warm.rss_mb,
        "rss_growth_mb": round(growth, 3),
        "bar_mb": BAR_MB,
        "threads": [before.threads, max(r.threads for r in during), after.threads],
        "descriptors": [before.descriptors, max(r.descriptors for r in during), after.descriptors],
        "frames_per_second": report["frames_per_second"],
    }
    passed = (
        growth < BAR_MB
        and before.threads == after.threads
        and before.descriptors == after.descriptors
        and (report["frames"], report["skipped"], report["dropped"]) == (expected, options.frames - expected, 0)
    )
    print(
        f"{report['frames']} results, {report['skipped']} skipped, {report['dropped']} dropped, {figures['seconds']} s"
    )
    print(f"resident memory: {warm.rss_mb:.1f} MB warm, grows by {growth:.2f} MB (bar {BAR_MB:.0f} MB)")
    for what in ("threads", "descriptors"):
        first, most, last = figures[what]
        print(f"{what}: {first} before, at most {most} during, {last} after")
    print("passed" if passed else "FAILED")
    if options.json:
        step = max(1, len(readings) // 50)
        kept = [asdict(reading) for reading in (*readings[:-1:step], readings[-1])]
        document = {"benchmark": "soak", **provenance(), "passed": passed, **figures, "readings": kept}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(options.check and not passed)


if __name__ == "__main__":
    sys.exit(main())
