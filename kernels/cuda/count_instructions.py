"""Counts the machine instructions of a step of the scan, for each architecture, without a GPU: the tables of NOTES.md.

    pip install nvidia-cuda-nvrtc-cu12==12.6.85 triton      # triton's wheel brings nvdisasm and a ptxas
    python kernels/cuda/count_instructions.py [--states 16] [--type F16] [--architectures 80,90]

Compiled is what a full-size call runs: 128 threads, softplus, several directions, one chunk; so that of the kernel's
branches only those are left that are taken. ``step``: the loop over the steps of a tile, divided by its steps. ``tile``: all else of
the loop over tiles (loads, conversion, softplus, staging), divided by the steps of a tile. Registers are the shipped
kernel's. Clocks are of one scheduler for a step of one warp: ``issue`` one instruction each, ``unit`` 8 for each 2^x,
``fp32`` 1 for each float32 operation, 2 where a scheduler has 16 lanes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from generate_ptx import OUTPUT, CompilerError, Nvrtc, find_nvrtc

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
THREADS = 128
SOURCE = """
#include "scan_block.h"
using namespace edgemamba::cuda;
struct Barrier {{
  __device__ __forceinline__ void operator()() const {{ __syncthreads(); }}
}};
extern "C" __global__ void __launch_bounds__({threads}, {blocks}) typical(const ScanArgs given) {{
  typedef Lane<{type}, {states}, false> Thread;
  __shared__ typename Thread::Shared shared;
  ScanArgs s = given;
  s.softplus = 1;
  s.states_per_channel = {states};
  s.states = nullptr;
  s.step_of = nullptr;
  if (s.partial == nullptr) __builtin_unreachable();
  walk<Thread>(s, blockIdx.x, threadIdx.x, {threads}, shared, Barrier());
}}
"""
GROUPS = {
    "2^x": ("MUFU.EX2",),
    "fp32": ("FFMA", "FMUL", "FADD", "FMNMX", "FSEL", "FSETP"),
    "lds": ("LDS",),
    "sts": ("STS",),
    "ldg": ("LDG",),
    "stg": ("STG",),
}


@dataclass(frozen=True)
class Multiprocessor:
    """Of one compute capability, from the tables of NVIDIA's programming guide."""

    warps: int
    shared_bytes: int
    fp32_lanes: int


KIB = 1024
MULTIPROCESSORS = {
    75: Multiprocessor(32, 64 * KIB, 64),
    80: Multiprocessor(64, 164 * KIB, 64),
    86: Multiprocessor(48, 100 * KIB, 128),
    87: Multiprocessor(48, 164 * KIB, 128),
    89: Multiprocessor(48, 100 * KIB, 128),
    90: Multiprocessor(64, 228 * KIB, 128),
    100: Multiprocessor(64, 228 * KIB, 128),
    103: Multiprocessor(64, 228 * KIB, 128),
    110: Multiprocessor(48, 228 * KIB, 128),
    120: Multiprocessor(48, 100 * KIB, 128),
    121: Multiprocessor(48, 100 * KIB, 128),
}


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel."""

    registers: int
    shared_bytes: int
    spilled_bytes: int

    def blocks(self, of: Multiprocessor) -> int:
        """How many blocks a multiprocessor holds at once."""
        warps = THREADS // 32
        by_registers = 65536 // (-(-self.registers * 32 // 256) * 256) // warps
        by_shared = of.shared_bytes // (self.shared_bytes + KIB)  # the system takes 1 KiB for each block
        return min(by_registers, by_shared, of.warps // warps)


@dataclass(frozen=True)
class Counts:
    """Instructions for one step, by group, and all of them."""

    step: Counter[str]
    tile: Counter[str]
    steps_of_a_tile: int

    def of(self, group: str) -> float:
        return self.step[group] + self.tile[group] / self.steps_of_a_tile


def find_tool(name: str) -> str:
    """``ptxas`` or ``nvdisasm`` on the path, or triton's.

    Raises:
        CompilerError: neither is there.
    """
    path = shutil.which(name)
    spec = find_spec("triton") if path is None else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = shutil.which(str(Path(folder, "backends", "nvidia", "bin", name)))
    if path is None:
        raise CompilerError(f"{name} is not on the path: install the CUDA toolkit, or pip install triton")
    return path


def assemble(ptx: Path, kernel: str, architecture: int, cubin: Path) -> Usage:
    """Machine code of one kernel, and what it takes."""
    command = [find_tool("ptxas"), f"-arch=sm_{architecture}", "-v", "--entry", kernel, str(ptx), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"sm_{architecture}: {done.stderr.strip().splitlines()[0]}")
    said = done.stderr + done.stdout

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes spill stores"))


def disassemble(cubin: Path) -> list[str]:
    """Labels (``.L_x_3:``) and instructions (``@P0 BRA `(.L_x_3)``) of the one kernel in it."""
    done = subprocess.run([find_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError((done.stderr.strip().splitlines() or ["nvdisasm failed"])[-1])
    lines = (re.sub(r"/\*[0-9a-f]+\*/", "", line).strip().rstrip(";").strip() for line in done.stdout.splitlines())
    return [line for line in lines if re.match(r"\.L_x_\d+:|[@A-Z!]", line)]


def loops(code: list[str]) -> list[range]:
    """Where a branch goes back to a label, smallest first."""
    labels = {line[:-1]: at for at, line in enumerate(code) if line.endswith(":")}
    found = []
    for at, line in enumerate(code):
        target = re.search(r"BRA(?:\.U)? .*`\((\.L_x_\d+)\)", line)
        if target is not None and labels.get(target[1], at) < at - 1:
            found.append(range(labels[target[1]], at + 1))
    return sorted(found, key=len)


def tally(lines: list[str]) -> Counter[str]:
    """Instructions by group; ``all`` of them."""
    counts: Counter[str] = Counter()
    for line in lines:
        if line.endswith(":"):
            continue
        name = re.sub(r"^@!?U?P\d+\s+", "", line).split()[0]
        counts["all"] += 1
        for group, starts in GROUPS.items():
            counts[group] += name.startswith(starts)
    return counts


def count(code: list[str], states: int, steps_of_a_tile: int) -> Counts:
    """Instructions of the kernel :data:`SOURCE`.

    Raises:
        CompilerError: the two loops are not where they are expected.
    """
    found = loops(code)
    # The loop over steps is the smallest that holds a 2^x of every state, or of all but those of polynomials.
    steps = next((loop for loop in found if tally([code[i] for i in loop])["2^x"] >= states * 3 // 4), None)
    tiles = next((loop for loop in found if steps and loop.start < steps.start and steps.stop < loop.stop), None)
    if steps is None or tiles is None:
        raise CompilerError("the loops over steps and tiles were not recognised")
    inner = tally([code[i] for i in steps])
    unrolled = max(1, round(inner["2^x"] / states))
    nested = {i for loop in found if loop.start > tiles.start and loop.stop < tiles.stop for i in loop}
    outer = tally([code[i] for i in tiles if i not in nested])
    return Counts(Counter({name: -(-n // unrolled) for name, n in inner.items()}), outer, steps_of_a_tile)


def table(states: int, element: str, architectures: list[int], folder: Path) -> list[str]:
    """The rows, as Markdown."""
    steps_of_a_tile = 8 if states <= 16 else 4 if states <= 32 else 2
    nvrtc = Nvrtc(find_nvrtc())
    source = SOURCE.format(threads=THREADS, blocks=3 if states <= 16 else 2, type=element, states=states)
    typical = folder / "typical.ptx"
    typical.write_text(nvrtc.compile("compute_75", source=source.encode()).decode().rstrip("\0"))
    kernel = f"scan_{element.lower()}_{states}"
    rows = [
        f"| `{kernel}` | registers | blocks | step | tile / {steps_of_a_tile} | 2^x | fp32 | lds | sts | ldg "
        "| clocks: issue | unit | fp32 |",
        "|---" * 13 + "|",
    ]
    for architecture in architectures:
        usage = assemble(OUTPUT, kernel, architecture, folder / "shipped.cubin")
        blocks = usage.blocks(MULTIPROCESSORS[architecture])
        start = f"| sm_{architecture} | {usage.registers} | {blocks} |"
        cubin = folder / "typical.cubin"
        assemble(typical, "typical", architecture, cubin)
        try:
            found = count(disassemble(cubin), states, steps_of_a_tile)
        except CompilerError as error:
            rows.append(f"{start} {error} |")
            continue
        doubled = 128 // MULTIPROCESSORS[architecture].fp32_lanes
        cells = [found.step["all"], found.tile["all"] / steps_of_a_tile]
        cells += [found.of(group) for group in ("2^x", "fp32", "lds", "sts", "ldg")]
        cells += [found.of("all"), 8 * found.of("2^x"), doubled * found.of("fp32")]
        rows.append(" ".join([start, *(f"{cell:.0f} |" if cell >= 10 else f"{cell:.1f} |" for cell in cells)]))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, choices=(1, 4, 8, 16, 32, 64), default=16)
    parser.add_argument("--type", choices=("F32", "F16", "BF16"), default="F16")
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    options = parser.parse_args()
    architectures = [int(text) for text in options.architectures.split(",")]
    try:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(table(options.states, options.type, architectures, Path(folder))))
    except CompilerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
