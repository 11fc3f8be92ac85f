"""Vim-Tiny beside DeiT-Tiny in ONNX Runtime on the CPU: latency and peak memory by picture size, in one run.

    python benchmarks/deit_peer_cpu.py [--sizes 224,768,1248] [--threads 2] [--json FILE] [--check]

The peer is timm's `deit_tiny_patch16_224` built for each size and exported to the same runtime by the same exporter; the
weights are random, which changes neither time nor memory. Latencies are minima over alternating runs in one process;
memory is the growth of the peak resident set over the loaded session, measured in a fresh process for each model.

The bars (ratio of DeiT-Tiny's figure and ours): at 224 at most 1.9 times its latency; at 768 at least 1.4 times faster; at
1248 at least 3 times faster with at most 30 % of its memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edgemamba.runtime.engines.ort import make_session
from edgemamba.runtime.memory import peak_bytes, reset_peak, resident_bytes
from edgemamba.runtime.provenance import provenance

PEER = "deit_tiny_patch16_224"
# size -> (least speed-up over the peer, largest share of the peer's memory)
BARS = {224: (1 / 1.9, None), 768: (1.4, None), 1248: (3.0, 0.30)}


@dataclass(frozen=True)
class Row:
    """Figures for one picture size: milliseconds and MiB."""

    size: int
    peer_ms: float
    vim_ms: float
    peer_mib: float
    vim_mib: float

    @property
    def speedup(self) -> float:
        return self.peer_ms / self.vim_ms

    @property
    def memory_share(self) -> float:
        return self.vim_mib / self.peer_mib

    def failures(self) -> list[str]:
        least_speedup, most_memory = BARS.get(self.size, (0.0, None))
        found = []
        if self.speedup < least_speedup:
            found.append(f"{self.size}: {self.speedup:.2f}x DeiT-Tiny's speed; the bar is {least_speedup:.2f}x")
        if most_memory is not None and self.memory_share > most_memory:
            found.append(f"{self.size}: {self.memory_share:.0%} of DeiT-Tiny's memory; the bar is {most_memory:.0%}")
        return found


def export_both(size: int, folder: Path) -> tuple[Path, Path]:
    """Write both models for one size; returns the peer's and our ONNX file."""
    import timm
    import torch

    from edgemamba.export import export
    from edgemamba.train import create_model

    peer = folder / f"peer_{size}.onnx"
    model = timm.create_model(PEER, img_size=size).eval()
    example = torch.zeros(1, 3, size, size)
    torch.onnx.export(model, (example,), dynamo=True, opset_version=20, verbose=False).save(str(peer))
    bundle = export(create_model("vim_tiny", img_size=size), folder / f"vim_{size}", weights=False)
    return peer, bundle.file("model.onnx")


def example_input(session, size: int) -> dict[str, np.ndarray]:
    """One random picture in the layout that the model takes (ours: uint8 NHWC; timm's: float32 NCHW)."""
    entry = session.get_inputs()[0]
    generator = np.random.default_rng(0)
    if entry.type == "tensor(uint8)":
        return {entry.name: generator.integers(0, 256, (1, size, size, 3), np.uint8)}
    return {entry.name: generator.standard_normal((1, 3, size, size), np.float32)}


def alternate(paths: tuple[Path, Path], size: int, threads: int, seconds: float) -> list[float]:
    """Least milliseconds of each model over alternating runs."""
    sessions = [make_session(path, threads=threads) for path in paths]
    inputs = [example_input(session, size) for session in sessions]
    best = [float("inf")] * len(paths)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for index, (session, feed) in enumerate(zip(sessions, inputs, strict=True)):
            start = time.perf_counter()
            session.run(None, feed)
            best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
        rounds += 1
    return best


def peak_above_session(path: Path, size: int, threads: int) -> float:
    """MiB by which three runs raise the peak resident set above the loaded session (in this process: call it alone)."""
    session = make_session(path, threads=threads)
    feed = example_input(session, size)
    loaded = resident_bytes()
    if loaded is None or not reset_peak():
        sys.exit("this system does not tell a process its peak memory")
    for _ in range(3):
        session.run(None, feed)
    return ((peak_bytes() or 0) - loaded) / 2**20


def measure(size: int, folder: Path, threads: int, seconds: float) -> Row:
    """Export, time and weigh both models at one size."""
    paths = export_both(size, folder)
    peer_ms, vim_ms = alternate(paths, size, threads, seconds)
    memory = []
    for path in paths:
        command = [sys.executable, __file__, "--weigh", str(path), "--sizes", str(size), "--threads", str(threads)]
        memory.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return Row(size, peer_ms, vim_ms, *memory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="224,768,1248", help="picture sizes, multiples of 16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="time for the alternating runs at each size")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--weigh", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.weigh:
        print(peak_above_session(options.weigh, sizes[0], options.threads))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(size, Path(folder), options.threads, options.seconds) for size in sizes]

    table = Table(title=f"Vim-Tiny beside DeiT-Tiny, ONNX Runtime CPU, batch 1, {options.threads} threads")
    for heading in ("size", "DeiT-Tiny ms", "Vim-Tiny ms", "speed-up", "DeiT-Tiny MiB", "Vim-Tiny MiB", "memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (row.peer_ms, row.vim_ms, row.speedup, row.peer_mib, row.vim_mib)
        table.add_row(str(row.size), *(f"{cell:.2f}" for cell in cells), f"{row.memory_share:.0%}")
    Console().print(table)
    failures = [failure for row in rows for failure in row.failures()]
    for failure in failures:
        print(f"bar missed: {failure}")
    if options.json:
        figures = [{**asdict(row), "speedup": row.speedup, "memory_share": row.memory_share} for row in rows]
        document = {"benchmark": "deit_peer_cpu", "threads": options.threads, **provenance(), "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(bool(failures) and options.check)


if __name__ == "__main__":
    sys.exit(main())
