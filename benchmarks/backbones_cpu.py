"""Whole backbones in PyTorch on the CPU: with our scan kernel, and with scans in plain PyTorch, in one run.

    python benchmarks/backbones_cpu.py [--models vim_tiny,vmamba_t] [--threads 2] [--json FILE] [--check]

The smallest published variant of each family, float32, fresh weights, one picture of its published size, under inference mode.
The peers are the very same module whose layers call, instead of the operator, the step loop of mamba_ssm's
`selective_scan_ref` (`upstream_loop.py`: the pure-PyTorch scan that users have otherwise), and our own readable one
(`edgemamba.train.reference_scan`), which is mostly faster; that all give the same logits is checked on the way. Models that are
not registered are left out, and named. PyTorch's threads wait as the environment says, by default spinning for a while (asleep,
OMP_WAIT_POLICY=PASSIVE, the plain scans' small loops take longer and the ratios flatter us).

- Latency: least of several calls, in alternation, in one process. The model is also timed with a scan that costs nothing (it
  returns u): the limit that no kernel can pass. Where even that is below the bar, the scan is too small a part of the model.
- Memory: how far making the model and three forwards raise the peak resident set of a fresh process, in which all that
  loads lazily (oneDNN, our library, thread pools) has been used on a few numbers before. So: weights, activations, and
  what kernels and allocator take beside them. One process for each model and scan.

The bars, for every model: at least 5 times faster than with the step loop, and at most 1.2 times the memory of our readable scan,
which takes less than the step loop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from scan_cpu import least
from torch import Tensor, nn
from upstream_loop import upstream_scan

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.memory import peak_bytes, reset_peak, resident_bytes
from edgemamba.runtime.provenance import package_version, provenance
from edgemamba.train import create_model
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.registry import model_entry
from edgemamba.train.scan_orders import scan_order
from edgemamba.train.selective_scan import selective_scan

MODELS = (
    "vim_tiny",
    "mambavision_t",
    "vmamba_t",
    "vanilla_vmamba_t",
    "efficientvmamba_t",
    "medmamba_t",
    "local_vim_t",
    "local_vmamba_t",
    "plain_mamba_l1",
)
LEAST_SPEEDUP = 5.0
MOST_MEMORY = 1.2
# Both scans are float32; they differ by the order of their sums.
MOST_DIFFERENCE = 1e-3
# Weighed; all are timed.
SCANS = ("kernel", "reference")
LOOP, FREE = "loop", "free"
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """Figures of one model: milliseconds, and MiB of weights and activations together."""

    model: str
    size: tuple[int, int]
    weights_mib: float
    kernel_ms: float
    reference_ms: float
    kernel_mib: float
    reference_mib: float
    difference: float
    loop_ms: float
    free_ms: float

    @property
    def speedup(self) -> float:
        return self.loop_ms / self.kernel_ms

    @property
    def most_speedup(self) -> float:
        """What a scan in no time would reach."""
        return self.loop_ms / self.free_ms

    @property
    def over_readable(self) -> float:
        return self.reference_ms / self.kernel_ms

    @property
    def memory_share(self) -> float:
        return self.kernel_mib / self.reference_mib

    def failures(self) -> list[str]:
        found = []
        if self.speedup < LEAST_SPEEDUP:
            limit = f"a scan in no time would reach {self.most_speedup:.2f}x"
            found.append(
                f"{self.model}: {self.speedup:.2f}x the step loop's speed; the bar is {LEAST_SPEEDUP:g}x ({limit})"
            )
        if self.memory_share > MOST_MEMORY:
            found.append(
                f"{self.model}: {self.memory_share:.2f}x the readable scan's memory; the bar is {MOST_MEMORY:g}x"
            )
        return found


def known(name: str) -> bool:
    """Whether a model is registered."""
    try:
        model_entry(name)
    except ModelError:
        return False
    return True


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model with fresh weights, and a picture of its size."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    return model, torch.randn(1, 3, *model.preprocessing.size)


def no_scan(u: Tensor, delta: Tensor, *arguments: object, **options: object) -> Tensor:
    """(B, P, D) in no time."""
    return u[:, :, 0]


@contextmanager
def scans(scan: str) -> Iterator[None]:
    """Until the block ends, the layers of all families scan like this. They know the operator by its name only."""
    functions = {"kernel": selective_scan, "reference": selective_scan_reference, LOOP: upstream_scan, FREE: no_scan}
    modules = [module for name, module in sys.modules.items() if name.startswith("edgemamba.train.models.")]
    with ExitStack() as stack:
        for module in modules:
            if getattr(module, "selective_scan", None) is selective_scan:
                stack.enter_context(mock.patch.object(module, "selective_scan", functions[scan]))
        yield


def time_both(model: nn.Module, x: Tensor, seconds: float) -> tuple[dict[str, float], float]:
    """Least milliseconds with each scan over alternating rounds, and how far at most the logits are apart, relative to their size."""
    contenders = (*SCANS, LOOP, FREE)
    best = dict.fromkeys(contenders, float("inf"))
    logits: dict[str, Tensor] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for scan in contenders:
                with scans(scan):
                    best[scan] = min(best[scan], least(lambda: model(x), seconds / ROUNDS / len(contenders)))
                    logits[scan] = model(x)
    ours, peers = logits["kernel"], [logits["reference"], logits[LOOP]]
    return best, max(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)) for theirs in peers)


def use_what_loads_lazily() -> None:
    """One call of every kind that a first forward would otherwise charge to the model."""
    x = torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        for conv in (nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, groups=16)):
            conv(x)
        nn.Linear(16, 16)(x.permute(0, 2, 3, 1))
        values, rows, parameters = torch.randn(1, 64, 1, 16), torch.randn(1, 64, 1, 4), torch.ones(1, 16)
        order = scan_order("raster", (64,))
        for scan in (selective_scan, selective_scan_reference):
            scan(values, values, -torch.ones(1, 16, 4), rows, rows, parameters, parameters, order)


def weigh_here(name: str, scan: str) -> float:
    """MiB by which making a model and three forwards raise this process (call it in a fresh one)."""
    model_entry(name)  # imports the families
    use_what_loads_lazily()
    before = resident_bytes()
    if before is None or not reset_peak():
        sys.exit("this system does not tell a process its peak memory")
    model, x = make(name)
    with torch.inference_mode(), scans(scan):
        for _ in range(3):
            model(x)
    return ((peak_bytes() or 0) - before) / 2**20


def measure(name: str, threads: int, seconds: float) -> Row:
    """Time and weigh one model with both scans."""
    weights = []
    for scan in SCANS:
        command = [sys.executable, __file__, "--weigh", scan, "--models", name, "--threads", str(threads)]
        weights.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    model, x = make(name)
    best, difference = time_both(model, x, seconds)
    if not difference <= MOST_DIFFERENCE:
        sys.exit(f"{name}: the logits with the two scans differ by {difference:.1e} of their size")
    own = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
    timed = best["kernel"], best["reference"]
    return Row(name, model.preprocessing.size, own, *timed, *weights, difference, best[LOOP], best[FREE])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"names with commas between them; default: {','.join(MODELS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="time for the alternating runs of each model")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed or a model is left out")
    parser.add_argument("--weigh", choices=SCANS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.models.split(",") if options.models else list(MODELS)
    if options.weigh:
        print(weigh_here(names[0], options.weigh))
        return 0

    left_out = [name for name in names if not known(name)]
    rows = [measure(name, options.threads, options.seconds) for name in names if name not in left_out]

    table = Table(title=f"Backbones in PyTorch, CPU, float32, batch 1, {options.threads} threads")
    table.add_column("model", no_wrap=True)
    for heading in ("loop", "readable", "kernel", "free", "x loop", "x readable", "MiB", "memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        timed = (f"{row.loop_ms:.0f}", f"{row.reference_ms:.0f}", f"{row.kernel_ms:.1f}", f"{row.free_ms:.1f}")
        ratios = (f"{row.speedup:.1f}", f"{row.over_readable:.1f}")
        table.add_row(row.model, *timed, *ratios, f"{row.kernel_mib:.1f}", f"{row.memory_share:.2f}")
    Console().print(table)
    for name in left_out:
        print(f"left out: {name} is not registered")
    failures = [failure for row in rows for failure in row.failures()]
    for failure in failures:
        print(f"bar missed: {failure}")
    if options.json:
        figures = [
            {
                **asdict(row),
                "speedup": row.speedup,
                "most_speedup": row.most_speedup,
                "over_readable": row.over_readable,
                "memory_share": row.memory_share,
            }
            for row in rows
        ]
        bars = {"least_speedup": LEAST_SPEEDUP, "most_memory": MOST_MEMORY}
        head = {"benchmark": "backbones_cpu", "threads": options.threads, "torch": package_version("torch")}
        head["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "default")
        document = {**head, **provenance(), "bars": bars, "left_out": left_out, "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(bool(failures or left_out) and options.check)


if __name__ == "__main__":
    sys.exit(main())
