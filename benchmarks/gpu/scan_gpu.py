"""The CUDA scan beside mamba_ssm's ``selective_scan_fn`` and beside the device's own limits, in one run.

    python benchmarks/gpu/scan_gpu.py [--json FILE] [--check]

The peer is timed with the copies that its layout makes it need: each direction's own u (flips; VMamba's transposes) and,
after it, the sum of the directions. Its delta, B and C are handed to it in the layout it wants, for nothing. Where
mamba_ssm cannot be imported the ratio is left out, and the table says so.

The limit is the larger of two times. Bytes: every input and the output once, over the measured copy bandwidth.
Arithmetic: a state takes 4 fused multiply-adds or products and one 2^x, of which the best share goes to the FMA pipe at 8
more instructions each (kernels/cuda/NOTES.md), over the measured rates of the two pipes; the rest of a step is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from issue_rates import copy_bandwidth, instruction_rate, least_seconds

from edgemamba.runtime import native, native_cuda
from edgemamba.runtime.native import TensorView

STATES = 16
FMA_PER_STATE, FMA_PER_POLYNOMIAL = 4, 8
LEAST_RATIO, LEAST_SHARE_OF_BOUND = 1.5, 0.60
NUMBERS = {torch.float16: native.FLOAT16, torch.float32: native.FLOAT32, torch.int32: native.INT32}


@dataclass(frozen=True)
class Shape:
    """One call in float16, N = 16. ``side`` > 0: a square picture whose directions are VMamba's four; else Vim's two."""

    name: str
    batch: int
    positions: int
    directions: int
    channels: int
    side: int = 0


SHAPES = (
    Shape("VMamba-T stage 1", 64, 3136, 4, 192, 56),
    Shape("Vim-T", 256, 197, 2, 384),
    Shape("one large picture", 1, 6084, 4, 192, 78),
)


@dataclass
class Row:
    """Milliseconds, ratio over the peer, and share of the limit."""

    shape: Shape
    algorithm: str
    ms: dict[str, float]
    bound_ms: float
    bound_by: str
    peer_ms: float | None

    @property
    def best_ms(self) -> float:
        return self.ms["auto"]

    def failures(self) -> list[str]:
        share = self.bound_ms / self.best_ms
        found = [] if share >= LEAST_SHARE_OF_BOUND else [f"{self.shape.name}: {share:.0%} of the limit"]
        if self.peer_ms is not None and self.peer_ms / self.best_ms < LEAST_RATIO:
            found.append(f"{self.shape.name}: {self.peer_ms / self.best_ms:.2f} times the peer")
        return found


def view(tensor: torch.Tensor) -> TensorView:
    return TensorView(tensor.data_ptr(), tuple(tensor.shape), NUMBERS[tensor.dtype])


def orders(shape: Shape) -> torch.Tensor:
    """(G, S) int32: forwards and backwards, by rows and, in a picture, by columns."""
    forwards = torch.arange(shape.positions, dtype=torch.int32)
    walks = [forwards] if not shape.side else [forwards, forwards.view(shape.side, shape.side).T.reshape(-1)]
    return torch.stack([*walks, *(walk.flip(0) for walk in walks)]).contiguous().cuda()


def draw(shape: Shape) -> list[torch.Tensor]:
    """The operator's eight inputs."""
    torch.manual_seed(0)

    def normal(*extents: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.randn(extents, device="cuda").to(dtype)

    batch, positions, directions, channels = shape.batch, shape.positions, shape.directions, shape.channels
    decay = -torch.arange(1, STATES + 1, dtype=torch.float32, device="cuda").expand(directions, channels, STATES)
    return [
        normal(batch, positions, 1, channels),
        normal(batch, positions, directions, channels) - 4,
        decay.contiguous(),
        normal(batch, positions, directions, STATES),
        normal(batch, positions, directions, STATES),
        normal(directions, channels, dtype=torch.float32),
        normal(directions, channels, dtype=torch.float32),
        orders(shape),
    ]


def our_call(inputs: list[torch.Tensor], algorithm: native_cuda.Algorithm) -> tuple[Callable[[], None], torch.Tensor]:
    views = [view(tensor) for tensor in inputs]
    batch, positions, _, channels = inputs[1].shape
    y = torch.empty(batch, positions, channels, dtype=inputs[0].dtype, device="cuda")
    count = torch.cuda.get_device_properties(0).multi_processor_count
    size = native_cuda.workspace_bytes(views, algorithm, count)
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")

    def call() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        native_cuda.scan_forward_cuda(
            views,
            True,
            view(y),
            stream=stream,
            workspace=workspace.data_ptr(),
            workspace_size=workspace.numel(),
            algorithm=algorithm,
        )

    return call, y


def peer_call(shape: Shape, inputs: list[torch.Tensor]) -> tuple[Callable[[], torch.Tensor], str] | None:
    """mamba_ssm with its copies, giving (B, D, P); None where it is not installed."""
    try:
        import mamba_ssm
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    u, delta, A, B, C, D, bias, order = inputs
    walk = order.long()

    def by_walk(tensor: torch.Tensor) -> torch.Tensor:
        """(B, P, G, X) -> (B, G, X, L), each direction in the order of its steps."""
        walks = [tensor[:, walk[g], g] for g in range(shape.directions)]
        return torch.stack(walks, 1).transpose(2, 3).contiguous()

    flat = (shape.batch, shape.directions * shape.channels, shape.positions)
    delta_, B_, C_ = by_walk(delta).view(flat), by_walk(B), by_walk(C)
    x = u[:, :, 0].transpose(1, 2).contiguous()

    def call() -> torch.Tensor:
        if shape.side:
            columns = x.view(shape.batch, shape.channels, shape.side, shape.side).transpose(2, 3).reshape(x.shape)
            ahead = torch.stack([x, columns], 1)
        else:
            ahead = x[:, None]
        walks = torch.cat([ahead, ahead.flip(-1)], 1).view(flat)
        y = selective_scan_fn(
            walks, delta_, A.flatten(0, 1), B_, C_, D.flatten(), delta_bias=bias.flatten(), delta_softplus=True
        ).view(shape.batch, shape.directions, shape.channels, shape.positions)
        half = shape.directions // 2
        merged = y[:, :half] + y[:, half:].flip(-1)
        if not shape.side:
            return merged[:, 0]
        rows = merged[:, 1].view(shape.batch, shape.channels, shape.side, shape.side).transpose(2, 3)
        return merged[:, 0] + rows.reshape(x.shape)

    return call, f"mamba_ssm {mamba_ssm.__version__}"


def limits() -> dict[str, float]:
    return {"copy": copy_bandwidth(), "ex2": instruction_rate("ex2"), "fma": instruction_rate("fma")}


def bound(inputs: list[torch.Tensor], y: torch.Tensor, rates: dict[str, float]) -> tuple[float, str]:
    """Seconds that nothing can beat, and what sets them."""
    moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, y)) / rates["copy"]
    states = inputs[1].numel() * STATES
    # Share of 2^x on the FMA pipe at which both pipes take equally long; none where the FMA pipe is the slower anyway.
    share = (rates["fma"] - FMA_PER_STATE * rates["ex2"]) / (rates["fma"] + FMA_PER_POLYNOMIAL * rates["ex2"])
    share = max(0.0, share)
    special = (1 - share) * states / rates["ex2"]
    multiplies = (FMA_PER_STATE + share * FMA_PER_POLYNOMIAL) * states / rates["fma"]
    arithmetic = max(special, multiplies)
    return (moved, "bytes") if moved > arithmetic else (arithmetic, "arithmetic")


def measure(shape: Shape, rates: dict[str, float]) -> tuple[Row, str | None]:
    inputs = draw(shape)
    ms, y = {}, inputs[0]
    forms: tuple[native_cuda.Algorithm, ...] = ("auto", "sequential", "chunked")
    for form in forms:
        call, y = our_call(inputs, form)
        ms[form] = 1e3 * least_seconds(call)
    peer, name, peer_ms = peer_call(shape, inputs), None, None
    if peer is not None:
        call_peer, name = peer
        with torch.no_grad():
            theirs = call_peer().transpose(1, 2).float()
            worst = float((theirs - y.float()).abs().max() / theirs.abs().max())
            if worst > 2e-2:
                raise SystemExit(f"{shape.name}: the two differ by {worst:.1%} of the largest value: not the same work")
            peer_ms = 1e3 * least_seconds(lambda: call_peer() is None and None)
    seconds, reason = bound(inputs, y, rates)
    count = torch.cuda.get_device_properties(0).multi_processor_count
    chosen = native_cuda.chosen_algorithm([view(tensor) for tensor in inputs], count)
    return Row(shape, chosen, ms, 1e3 * seconds, reason, peer_ms), name


def device_facts() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver_version(),
    }


def _driver_version() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.is_file() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    reason = native_cuda.unavailable() or (None if torch.cuda.is_available() else "this PyTorch has no CUDA")
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    from edgemamba.runtime.provenance import provenance

    rates = limits()
    print(", ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()))
    rows, failures, peer = [], [], None
    for shape in SHAPES:
        row, name = measure(shape, rates)
        peer = peer or name
        rows.append(row)
        failures += row.failures()
        beside = "no mamba_ssm here" if row.peer_ms is None else f"{row.peer_ms / row.best_ms:.2f} times {name}"
        share = f"{row.bound_ms / row.best_ms:.0%} of the limit ({row.bound_by})"
        print(f"{shape.name}: {row.best_ms:.3f} ms ({row.algorithm}), {beside}, {share}")
    for failure in failures:
        print(f"bar missed: {failure}")
    if options.json:
        document = {"benchmark": "scan_gpu", **provenance(), **device_facts(), "peer": peer, "rates": rates}
        document["rows"] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(bool(failures) and options.check)


if __name__ == "__main__":
    sys.exit(main())
