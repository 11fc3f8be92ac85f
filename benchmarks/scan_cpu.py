"""The scan kernel on the CPU beside its peers and the machine's own limit, in one run.

    python benchmarks/scan_cpu.py [--seconds 6] [--json FILE] [--check]

For each shape, in alternation, least time over the repetitions:

- our kernel, float32, on one and two threads, for each instruction set of this machine: `kernels/bench/scan_time.cpp`
  calls the installed library through its C ABI;
- the step loop of mamba_ssm's `selective_scan_ref` on two threads (written again here after its description: channels
  first, everything discretised before the loop, G groups of channels): the peer of the bars. PyTorch is held to AVX2
  like the kernel that the bars are for (ATEN_CPU_CAPABILITY). Its time hangs on whether malloc hands the loop's tensors,
  megabytes large, memory that it has or maps fresh pages for every call, which is settled by chance when a process starts:
  so it is timed in fifteen fresh processes over the run, and the mean of their least times counts. Listed beside
  it: the loop with a malloc that keeps all memory (MALLOC_*_THRESHOLD_), the best it can get, and our own readable
  reference;
- the portable ONNX function in stock ONNX Runtime, on one thread.

The bound is that of the multiplier pipes: eight-lane fused multiply-adds are timed by `kernels/bench/fma_rate.cpp` in
the same alternation. For eight channels, one state update takes 9 multiplications (rounding, fraction, three of the
polynomial, the root's, dt u B, state, output) and each step 18 more (16 of softplus, dt u, D u): 9 + 18 / N for each
state. Additions, shifts, table look-ups and loads go to other pipes and are not counted, nor is any overlap lost between
them: nothing that computes these products can be faster.
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
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
BAR_ISA = "x86-64-v3"
STATES = 16
ROUNDS = 5
LOOPS_A_ROUND = 3
LOOP, LOOP_KEPT, READABLE = (
    "selective_scan_ref loop, PyTorch, 2 threads",
    "the same, malloc keeps memory",
    "our readable reference, PyTorch, 2 threads",
)
# glibc's: neither a mapping of its own for a large tensor nor the heap's top goes back to the system.
MALLOC_KEEPS = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
MULTIPLIES = 9 + 18 / STATES


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
    """Least milliseconds of each contender on one shape; of the loop, the mean of its processes' least."""

    shape: Shape
    ms: dict[str, float] = field(default_factory=dict)
    loop_processes_ms: list[float] = field(default_factory=list)
    fma_per_second: float = 0.0

    @property
    def kernel(self) -> float:
        return self.ms[f"kernel {BAR_ISA} 1 thread"]

    @property
    def torch_loop(self) -> float:
        return self.ms[LOOP]

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
    """The step loops, on two threads."""
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"  # read when torch is imported
    import torch
    import torch.nn.functional as F
    from upstream_loop import step_loop

    from edgemamba.train.reference_scan import selective_scan_reference

    torch.set_num_threads(2)
    values = {name: torch.from_numpy(value) for name, value in inputs(shape).items()}
    p, d, g = shape.positions, shape.channels, shape.directions

    # selective_scan_ref's layout: (B, G D, L) for u and delta, (B, G, N, L) for B and C. The copies that bring the
    # directions into their orders are made beforehand, and merging the directions afterwards is left out: in its favour.
    u = values["u"].expand(-1, -1, g, -1).permute(0, 2, 3, 1).reshape(1, g * d, p).contiguous()
    delta = values["delta"].permute(0, 2, 3, 1).reshape(1, g * d, p).contiguous()
    B, C = (values[name].permute(0, 2, 3, 1).contiguous() for name in "BC")
    A, D = values["A"].reshape(g * d, STATES), values["D"].reshape(g * d)
    bias = values["delta_bias"].reshape(g * d, 1)

    @torch.no_grad()
    def upstream() -> torch.Tensor:
        return step_loop(u, F.softplus(delta + bias), A, B, C, D)

    @torch.no_grad()
    def readable() -> torch.Tensor:
        return selective_scan_reference(**values)

    return {LOOP: upstream, READABLE: readable}


def loop_milliseconds(shape: Shape, name: str, seconds: float, **environment: str) -> float:
    """Least milliseconds of one of the step loops in a process of its own."""
    command = [sys.executable, __file__, "--loop", name, "--shape", shape.name, "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return float(done.stdout)


def onnx_function(shape: Shape) -> Callable[[], object]:
    """The function in stock ONNX Runtime, on one thread."""
    from edgemamba.export.graph import selective_scan_model
    from edgemamba.runtime.engines.ort import make_session

    values = inputs(shape)
    extents = {"batch": 1, "P": shape.positions, "Gu": 1, "G": shape.directions, "D": shape.channels, "N": STATES}
    model = selective_scan_model(extents={**extents, "S": shape.positions})
    session = make_session(model.SerializeToString(), kernel=False, threads=1)
    return lambda: session.run(None, values)


@dataclass(frozen=True)
class Programs:
    """The native measurements, compiled for this run."""

    fma_rate: Path
    scan_time: Path

    @classmethod
    def compile(cls, folder: Path) -> Programs:
        from edgemamba.runtime import native

        compiler = [os.environ.get("CXX", "c++"), "-O2", "-std=c++17"]
        programs = cls(folder / "fma_rate", folder / "scan_time")
        library = native.library_path()
        link = [str(library), f"-Wl,-rpath,{library.parent}", "-I", str(KERNELS / "include")]
        subprocess.run(
            [*compiler, "-mavx2", "-mfma", str(KERNELS / "bench" / "fma_rate.cpp"), "-o", str(programs.fma_rate)],
            check=True,
        )
        subprocess.run(
            [*compiler, str(KERNELS / "bench" / "scan_time.cpp"), *link, "-o", str(programs.scan_time)], check=True
        )
        return programs

    def kernel_milliseconds(self, shape: Shape, isa: str, threads: int, seconds: float) -> float:
        numbers = (shape.positions, shape.channels, shape.directions, threads, seconds)
        return self._number([str(self.scan_time), *map(str, numbers)], {**os.environ, "EDGEMAMBA_ISA": isa})

    def fma_per_second(self) -> float:
        return self._number([str(self.fma_rate)], dict(os.environ))

    @staticmethod
    def _number(command: list[str], environment: dict[str, str]) -> float:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout)


def measure(shape: Shape, seconds: float, isas: list[str], programs: Programs) -> Row:
    """Every contender in turn, several rounds: what slows the machine for a while slows all of them."""
    row = Row(shape)
    function = onnx_function(shape)
    each = seconds / ROUNDS

    def keep(name: str, milliseconds: float) -> None:
        row.ms[name] = min(row.ms.get(name, float("inf")), milliseconds)

    for _ in range(ROUNDS):
        for isa in isas:
            for threads in (1, 2):
                name = f"kernel {isa} {threads} thread{'s' if threads > 1 else ''}"
                keep(name, programs.kernel_milliseconds(shape, isa, threads, each / 4))
        row.fma_per_second = max(row.fma_per_second, programs.fma_per_second())
        keep("function 1 thread", least(function, each))
        keep(READABLE, loop_milliseconds(shape, READABLE, each))
        keep(LOOP_KEPT, loop_milliseconds(shape, LOOP, each, **MALLOC_KEEPS))
        for _ in range(LOOPS_A_ROUND):
            row.loop_processes_ms.append(loop_milliseconds(shape, LOOP, each / LOOPS_A_ROUND))
    row.ms[LOOP] = fmean(row.loop_processes_ms)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each contender and shape")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--loop", choices=(LOOP, READABLE), help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=[shape.name for shape in BARS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        shape = next(shape for shape in BARS if shape.name == options.shape)
        print(least(torch_loops(shape)[options.loop], options.seconds))
        return 0
    from edgemamba.runtime import native
    from edgemamba.runtime.provenance import package_version, provenance

    isas = [isa for isa in native.available_isas() if isa != "scalar"]
    if BAR_ISA not in isas:
        print(f"this machine has no {BAR_ISA}; the bars are for it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs.compile(Path(folder))
        rows = [measure(shape, options.seconds, isas, programs) for shape in BARS]

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
        table.add_row(
            f"bound: {MULTIPLIES:g} multiplications a state at {row.fma_per_second:.2e}/s", f"{row.bound:.3f}"
        )
        console.print(table)
        kept = row.ms[LOOP_KEPT] / row.kernel
        print(f"  over the PyTorch loop where malloc keeps memory: {kept:.2f} (no bar)")
        loops = ", ".join(f"{value:.2f}" for value in sorted(row.loop_processes_ms))
        print(f"  the loop in {len(row.loop_processes_ms)} processes: {loops} ms")
        for name, value in row.ratios().items():
            bar = row.bars()[name]
            print(f"  {name}: {value:.2f} (bar {bar})")
            if value < bar:
                failures.append(f"{shape.name}: {name} is {value:.2f}; the bar is {bar}")
    for failure in failures:
        print(f"bar missed: {failure}")
    if options.json:
        figures = [{**asdict(row), "bound_ms": row.bound, "ratios": row.ratios(), "bars": row.bars()} for row in rows]
        document = {"benchmark": "scan_cpu", **provenance(), "torch": package_version("torch"), "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(bool(failures) and options.check)


if __name__ == "__main__":
    sys.exit(main())
