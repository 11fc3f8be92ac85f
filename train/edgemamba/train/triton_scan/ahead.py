"""Compiles the scan's kernels for an architecture without a GPU, and says what ptxas made of them.

python -m edgemamba.train.triton_scan.ahead [--arch 75 80 86 87 89 90 100 120] [--dtype fp16] [--states 16] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgemamba.train.triton_scan.backward_kernel import scan_backward
from edgemamba.train.triton_scan.configuration import (
    TILE,
    BackwardConfig,
    ForwardConfig,
    default_backward,
    default_forward,
)
from edgemamba.train.triton_scan.forward_kernel import scan_forward

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
_VALUES = ("u", "delta", "B", "C", "dy", "ddelta")
_PARAMETERS = ("decay", "D", "delta_bias", "states", "carry", "dA", "dB", "dC", "dD", "dbias")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture: registers a thread, bytes of spills, bytes of shared memory, bytes of code."""

    kernel: str
    arch: int
    dtype: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    code: int


def compile_forward(
    arch: int,
    dtype: str,
    states: int,
    config: ForwardConfig | None = None,
    *,
    checkpoints: bool = False,
    ones: Sequence[str] = (),
) -> Compiled:
    """The scan (directions add up: float32 parts), or the pass that leaves the states of every tile.

    ``dtype`` is Triton's name: fp32, fp16 or bf16. ``ones`` names the extents that are 1: a launch makes constants of them.
    """
    config = config or default_forward(384, states)
    constants = {
        "N": triton.next_power_of_2(states),
        "BLOCK": config.block,
        "TILE": TILE,
        "SOFTPLUS": True,
        "WRITE_STATES": checkpoints,
    } | dict.fromkeys(ones, 1)
    name = "checkpoints" if checkpoints else "forward"
    return _compile(scan_forward, name, arch, dtype, states, constants, config.warps, {"y": "*fp32"})


def compile_backward(
    arch: int, dtype: str, states: int, config: BackwardConfig | None = None, *, ones: Sequence[str] = ()
) -> Compiled:
    """The gradients of all inputs; a u of each direction's own."""
    config = config or default_backward(384, states)
    constants = {"STATES": config.states, "BLOCK": config.block, "TILE": TILE, "SOFTPLUS": True}
    constants |= dict.fromkeys(ones, 1)
    constants |= {f"WANT_{name}": True for name in ("U", "DELTA", "A", "B", "C")}
    return _compile(scan_backward, "backward", arch, dtype, states, constants, config.warps, {"du": f"*{dtype}"})


def _compile(
    kernel: Any,
    name: str,
    arch: int,
    dtype: str,
    states: int,
    constants: dict[str, Any],
    warps: int,
    pointers: dict[str, str],
) -> Compiled:
    pointers = pointers | dict.fromkeys(_VALUES, f"*{dtype}") | dict.fromkeys(_PARAMETERS, "*fp32") | {"order": "*i32"}
    signature = {
        argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
        for argument in kernel.arg_names
    }
    # What a launch would tell the compiler: allocations are aligned, and so are these extents of every published model.
    aligned = (*pointers, "channels", *(("n_states",) if states % 16 == 0 else ()))
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    attributes = {
        places[name]: [["tt.divisibility", 16]] for name in aligned if name in places and name not in constants
    }
    built = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    registers, stores, loads = _resources(built.asm["ptx"])
    return Compiled(name, arch, dtype, registers, stores, loads, built.metadata.shared, len(built.asm["cubin"]))


def _resources(ptx: str) -> tuple[int, int, int]:
    """(registers, bytes of spill stores, of spill loads) as an assembler that comes with Triton reports them."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if target is None:
        raise RuntimeError("PTX without a .target")
    told = ""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "kernel.ptx")
        source.write_text(ptx)
        # Triton brings two assemblers; which reads which version of PTX changes from release to release.
        for assembler in sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*")):
            command = [str(assembler), "-v", f"--gpu-name={target[1]}", str(source), "-o", f"{scratch}/kernel.cubin"]
            done = subprocess.run(command, capture_output=True, text=True)
            told = done.stderr
            if done.returncode == 0:
                break
    numbers = []
    for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads"):
        found = re.search(pattern, told)
        if found is None:
            raise RuntimeError(f"ptxas -v says nothing like {pattern!r}: {told}")
        numbers.append(int(found[1]))
    return numbers[0], numbers[1], numbers[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "fp16", "bf16"), default=["fp16"])
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows = []
    for arch in options.arch:
        for dtype in options.dtype:
            for row in (
                compile_forward(arch, dtype, options.states),
                compile_forward(arch, dtype, options.states, checkpoints=True),
                compile_backward(arch, dtype, options.states),
            ):
                rows.append(asdict(row))
                print(
                    f"sm_{arch} {dtype} {row.kernel}: {row.registers} registers, spills {row.spill_stores}/"
                    f"{row.spill_loads} bytes, {row.shared} bytes shared, {row.code} bytes of cubin"
                )
    if options.json:
        document = {"triton": triton.__version__, "tile": TILE, "states": options.states, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
