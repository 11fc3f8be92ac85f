"""The scan kernel on the CPU beside its peers and the machine's own limit, in one run.

    python benchmarks/scan_cpu.py [--seconds 6] [--json FILE] [--check]

For each shape, in alternation, least time over the repetitions:

- our kernel, float32, on one and two threads, for each instruction set of this machine (called through the C ABI on
  buffers that exist already);
- the pure-PyTorch step loop on two threads, in two forms: discretising all steps first, as mamba_ssm's
  `selective_scan_ref` does, and our readable reference. The faster one is the peer;
- the portable ONNX function in stock ONNX Runtime, on one thread.

The bound is that of the multiplier pipes: eight-lane fused multiply-adds are timed by `kernels/bench/fma_rate.cpp` in
the same alternation, and one state update of eight channels costs MULTIPLIES of them (additions, shifts and loads go to
other pipes and are not counted). Bars, for x86-64-v3 on one thread: see BARS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

# fma for the rounding, fms for the fraction, five fma of the polynomial, dt u B, and the two of state and output.
MULTIPLIES = 10
FMA_SOURCE = Path(__file__).resolve().parents[1] / "kernels" / "bench" / "fma_rate.cpp"
BAR_ISA = "x86-64-v3"
STATES = 16


@dataclass(frozen=True)
class Shape:
    """One call (batch 1, N = 16) and its bars: least ratio over the PyTorch loop and over the ONNX function."""

    name: str
    positions: int
    channels: int
    directions: int
    over_torch: float
    over_function: float


BARS = (Shape("Vim-Tiny layer", 197, 384, 1, 40.0, 4.5), Shape("VMamba-T stage 1", 3136, 192, 4, 30.0, 3.5))
LEAST_SHARE_OF_BOUND = 0.60
LEAST_SCALING = 1.8


@dataclass
class Row:
    """Least milliseconds of each contender on one shape."""

    shape: Shape
    ms: dict[str, float] = field(default_factory=dict)
    fma_per_second: float = 0.0

    @property
    def kernel(self) -> float:
        return self.ms[f"kernel {BAR_ISA} 1 thread"]

    @property
    def torch_loop(self) -> float:
        return min(value for name, value in self.ms.items() if name.startswith("torch"))

    @property
    def bound(self) -> float:
        """Milliseconds in which the multiplier pipes could issue the kernel's multiplications."""
        shape = self.shape
        updates = shape.positions * shape.channels * shape.directions * STATES / 8
        return 1e3 * updates * MULTIPLIES / self.fma_per_second

    def ratios(self) -> dict[str, float]:
        return {
            "over the PyTorch loop": self.torch_loop / self.kernel,
            "over the ONNX function": self.ms["function 1 thread"] / self.kernel,
            "share of the bound": self.bound / self.kernel,
            "two threads over one": self.kernel / self.ms[f"kernel {BAR_ISA} 2 threads"],
        }

    def bars(self) -> dict[str, float]:
        least = (self.shape.over_torch, self.shape.over_function, LEAST_SHARE_OF_BOUND, LEAST_SCALING)
        return dict(zip(self.ratios(), least, strict=True))


def inputs(shape: Shape) -> dict[str, np.ndarray]:
    """Values as a trained layer has them: A = -1..-N, dt between 0.001 and 0.1 before what the token adds."""
    generator = np.random.default_rng(0)

    def normal(*extents: int) -> np.ndarray:
        return generator.standard_normal(extents, np.float32)

    p, d, g = shape.positions, shape.channels, shape.directions
    dt = np.exp(generator.uniform(np.log(1e-3), np.log(1e-1), (g, d)))
    return {
        "u": normal(1, p, 1, d),
        "delta": 0.5 * normal(1, p, g, d),
        "A": -np.broadcast_to(np.arange(1, STATES + 1, dtype=np.float32), (g, d, STATES)).copy(),
        "B": normal(1, p, g, STATES),
        "C": normal(1, p, g, STATES),
        "D": np.ones((g, d), np.float32),
        "delta_bias": (dt + np.log(-np.expm1(-dt))).astype(np.float32),
        "order": np.stack([np.roll(np.arange(p), direction) for direction in range(g)]).astype(np.int32),
    }


def kernel_milliseconds(shape: Shape, threads: int, seconds: float) -> float:
    """Least time of a call through the C ABI, in this process's instruction set."""
    from edgemamba.runtime import native

    values = inputs(shape)
    out = np.empty((1, shape.positions, shape.channels), np.float32)
    views = [native.view_of(value, name) for name, value in values.items()]
    result = native.view_of(out, "y")
    return least(lambda: native.scan_forward(views, True, result, threads), seconds)


def least(call: Callable[[], object], seconds: float) -> float:
    """Least milliseconds of a call over about ``seconds``, after one that warms up."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, 1e3 * (now - start))
        if now >= end:
            return best


def torch_loops(shape: Shape) -> dict[str, Callable[[], object]]:
    """The two step loops, on two threads."""
    import torch
    import torch.nn.functional as F

    from edgemamba.train.reference_scan import selective_scan_reference

    torch.set_num_threads(2)
    values = {name: torch.from_numpy(value) for name, value in inputs(shape).items()}
    order = values["order"].long()

    @torch.no_grad()
    def discretised_first() -> torch.Tensor:
        y = torch.zeros(1, shape.positions, shape.channels)
        for g in range(shape.directions):
            index = order[g]
            u, B, C = values["u"][:, index, 0], values["B"][:, index, g], values["C"][:, index, g]
            dt = F.softplus(values["delta"][:, index, g] + values["delta_bias"][g])
            decay = torch.exp(torch.einsum("bld,dn->bldn", dt, values["A"][g]))
            inputs_ = torch.einsum("bld,bln,bld->bldn", dt, B, u)
            state = u.new_zeros(1, shape.channels, STATES)
            rows = []
            for s in range(shape.positions):
                state = decay[:, s] * state + inputs_[:, s]
                rows.append(torch.einsum("bdn,bn->bd", state, C[:, s]))
            y.index_add_(1, index, torch.stack(rows, dim=1) + u * values["D"][g])
        return y

    @torch.no_grad()
    def readable() -> torch.Tensor:
        return selective_scan_reference(**values)

    return {"torch loop, discretised first, 2 threads": discretised_first, "torch loop, readable, 2 threads": readable}


def onnx_function(shape: Shape) -> Callable[[], object]:
    """The function in stock ONNX Runtime, on one thread."""
    from edgemamba.export.graph import selective_scan_model
    from edgemamba.runtime.engines.ort import make_session

    values = inputs(shape)
    extents = {"batch": 1, "P": shape.positions, "Gu": 1, "G": shape.directions, "D": shape.channels, "N": STATES}
    model = selective_scan_model(extents={**extents, "S": shape.positions})
    session = make_session(model.SerializeToString(), kernel=False, threads=1)
    return lambda: session.run(None, values)


def fma_program(folder: Path) -> list[str]:
    """Compile the issue-rate measurement."""
    compiler = os.environ.get("CXX", "c++")
    program = folder / "fma_rate"
    subprocess.run([compiler, "-O2", "-mavx2", "-mfma", str(FMA_SOURCE), "-o", str(program)], check=True)
    return [str(program)]


def kernel_command(shape: Shape, threads: int, seconds: float) -> list[str]:
    index = BARS.index(shape)
    return [sys.executable, __file__, "--kernel", f"{index},{threads}", "--seconds", str(seconds)]


def measure(shape: Shape, seconds: float, isas: list[str], program: list[str]) -> Row:
    """Every contender in turn, several rounds, least of each: what slows the machine for a while slows all of them."""
    row = Row(shape)
    loops = torch_loops(shape) | {"function 1 thread": onnx_function(shape)}
    rounds = 4
    for _ in range(rounds):
        for isa in isas:
            for threads in (1, 2):
                command = kernel_command(shape, threads, seconds / 10)
                done = subprocess.run(
                    command, env={**os.environ, "EDGEMAMBA_ISA": isa}, check=True, capture_output=True, text=True
                )
                name = f"kernel {isa} {threads} thread{'s' if threads > 1 else ''}"
                row.ms[name] = min(row.ms.get(name, float("inf")), float(done.stdout))
        rate = float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
        row.fma_per_second = max(row.fma_per_second, rate)
        for name, call in loops.items():
            row.ms[name] = min(row.ms.get(name, float("inf")), least(call, seconds / rounds))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each contender and shape")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--kernel", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernel:
        index, threads = map(int, options.kernel.split(","))
        print(kernel_milliseconds(BARS[index], threads, options.seconds))
        return 0

    from edgemamba.runtime import native
    from edgemamba.runtime.provenance import provenance

    isas = [isa for isa in native.available_isas() if isa != "scalar"]
    if BAR_ISA not in isas:
        print(f"this machine has no {BAR_ISA}; the bars are for it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        program = fma_program(Path(folder))
        rows = [measure(shape, options.seconds, isas, program) for shape in BARS]

    console = Console()
    failures = []
    for row in rows:
        shape = row.shape
        title = f"{shape.name}: P={shape.positions} D={shape.channels} N={STATES} G={shape.directions}, float32"
        table = Table(title=title)
        table.add_column("contender")
        table.add_column("ms", justify="right")
        for name, value in sorted(row.ms.items(), key=lambda item: item[1]):
            table.add_row(name, f"{value:.3f}")
        table.add_row(f"bound: {MULTIPLIES} multiplications a state at {row.fma_per_second:.2e}/s", f"{row.bound:.3f}")
        console.print(table)
        for name, value in row.ratios().items():
            bar = row.bars()[name]
            print(f"  {name}: {value:.2f} (bar {bar})")
            if value < bar:
                failures.append(f"{shape.name}: {name} is {value:.2f}; the bar is {bar}")
    for failure in failures:
        print(f"bar missed: {failure}")
    if options.json:
        figures = [{**asdict(row), "bound_ms": row.bound, "ratios": row.ratios(), "bars": row.bars()} for row in rows]
        document = {"benchmark": "scan_cpu", **provenance(), "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(bool(failures) and options.check)


if __name__ == "__main__":
    sys.exit(main())
