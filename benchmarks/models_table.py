"""Every registered model: what it costs, and how far its exported graph is from PyTorch. Writes docs/models.md.

    python benchmarks/models_table.py [--models 'vim*'] [--only parity|latency] [--again] [--json FILE] [--render]

For each model, in a process of its own, at its published size:

- parameters; multiply-accumulates of a forward (torch.utils.flop_counter; a scan counts 4 N + 2 for each position, direction
  and channel: the exponent's product, dt u B, the state's decay, the output, dt u and D u; an exponential counts nothing);
- the exported graph in float32 and float16: size, and the largest |error| / max(1, |logit|) against PyTorch in float32, with
  our kernel and with the portable function in stock ONNX Runtime, on seeded synthetic pictures and on scikit-image's
  photographs. Released weights cannot be had here, so weights are random and then perturbed (`perturb`): fresh ones leave
  branches near zero, and an error in them would not show;
- latency of one picture in float32: the graph in ONNX Runtime with our kernel, and the same model in PyTorch with the scan in
  plain PyTorch (least of several calls).

Results go into the JSON file model by model; models in it are not measured again without --again. --render writes the page
from the file alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones_cpu import scans
from rich.console import Console
from rich.progress import track
from scan_cpu import least
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgemamba.export import export, verify
from edgemamba.export.parity import BackendParity
from edgemamba.runtime import load
from edgemamba.runtime.bundle import MODEL, MODEL_DATA
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.provenance import package_version, provenance
from edgemamba.train import create_model, list_models
from edgemamba.train.registry import families, model_entry

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/models.json"
PAGE = ROOT / "docs/models.md"
PRECISIONS = ("fp32", "fp16")
BARS = {"fp32": 1e-4, "fp16": 2e-2}
SECONDS = 3.0
SYNTHETIC = 2
LARGE_GMACS, FEW_PHOTOGRAPHS = 3, 3
# Photographs that scikit-image carries in its package, grey ones among them.
PHOTOGRAPHS = ("astronaut", "camera", "cat", "cell", "coffee", "coins", "page", "rocket", "text")

# Family -> licence of its code and of its weights, as their authors state it. Our code is our own; weights stay theirs.
LICENCES = {
    "vim": "Apache-2.0 (hustvl/Vim)",
    "medmamba": "none stated (YubiaoYue/MedMamba)",
    "vmamba": "MIT (MzeroMiko/VMamba)",
    "efficientvmamba": "Apache-2.0 (TerryPei/EfficientVMamba, and its weights on Hugging Face)",
    "mambavision": "**non-commercial**: code NVIDIA Source Code License-NC, weights CC-BY-NC-SA-4.0 (NVlabs/MambaVision)",
    "local_mamba": "Apache-2.0 (hunto/LocalMamba)",
    "plain_mamba": "Apache-2.0 (ChenhongyiYang/PlainMamba)",
}


def perturb(model: nn.Module) -> None:
    """Put every parameter and every running statistic where it counts: as after training, not as at its start."""
    generator = torch.Generator().manual_seed(1)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:  # learned scales of branches start at 1e-5
                parameter.fill_(0.5).add_(0.1 * noise(parameter))
            elif parameter.dim() == 1:
                parameter.add_(0.1 * noise(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * torch.rand(buffer.shape, generator=generator))
        model.eval()
        # Logits of the size that a trained classifier gives.
        size = tuple(model.preprocessing.size)  # type: ignore[union-attr, arg-type]
        logits = model(torch.randn(1, 3, *size, generator=generator))
        head = model.get_classifier()  # type: ignore[operator]
        head.weight.mul_(2 / logits.std().clamp(min=1e-3))


def scan_macs(u: Any, delta: Any, A: Any, *rest: Any, **options: Any) -> int:
    """Multiply-accumulates of one scan, from the shapes of its inputs, doubled as the counter counts."""
    batch, directions, channels, states = u[0], A[0], A[1], A[2]
    steps = rest[4][1]  # of B, C, D, delta_bias, order: the last one's
    return int(2 * batch * steps * directions * channels * (4 * states + 2))


def macs(model: nn.Module, x: Tensor) -> float:
    """Multiply-accumulates of a forward."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.edgemamba.selective_scan: scan_macs})
    with torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() / 2


@contextmanager
def photographs() -> Iterator[Path]:
    """A folder of scikit-image's pictures."""
    import skimage.data
    import skimage.io

    with tempfile.TemporaryDirectory() as folder:
        for name in PHOTOGRAPHS:
            skimage.io.imsave(Path(folder) / f"{name}.png", getattr(skimage.data, name)(), check_contrast=False)
        yield Path(folder)


def make(name: str) -> nn.Module:
    """A model with a thousand classes and perturbed weights."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000)
    perturb(model)
    return model


def measure_parity(name: str, bundles: Path) -> dict[str, Any]:
    """Sizes and errors of one model's graphs."""
    entry, model = model_entry(name), make(name)
    size = model.preprocessing.size  # type: ignore[union-attr]
    row: dict[str, Any] = {
        "model": name,
        "family": entry.family,
        "size": list(size),
        "params": entry.params,
        "gmacs": macs(model, torch.randn(1, 3, *size)) / 1e9,
        "top1": entry.top1,
        "source": entry.source,
    }
    with tempfile.TemporaryDirectory() as folder, photographs() as pictures:
        for precision in PRECISIONS:
            try:
                bundle = export(model, Path(folder) / precision, precision=precision)
            except ExportError as error:
                row[precision] = {"error": str(error)}
                continue
            # Weights beyond 2 GiB lie beside the graph.
            files = [bundle.path / name for name in (MODEL, MODEL_DATA)]
            row[precision] = {"mib": sum(file.stat().st_size for file in files if file.exists()) / 2**20}
            for kind, source in (("synthetic", None), ("photographs", pictures)):
                # The largest models take seconds for a picture, in PyTorch and in two engines.
                few = row["gmacs"] > LARGE_GMACS
                samples = SYNTHETIC if source is None else FEW_PHOTOGRAPHS if few else None
                report = verify(bundle, inputs=source, samples=samples, batch=1, write=False, bisect=False)
                row[precision][kind] = {backend.backend: _comparison(backend) for backend in report.backends}
            shutil.rmtree(bundle.path)
    return row


def _comparison(backend: BackendParity) -> dict[str, Any]:
    return {
        "error": backend.outputs[0].max_rel_error if backend.outputs else None,
        "top1_agreement": backend.agreement.top1 if backend.agreement else None,
        "failure": backend.error,
    }


def bundle_for_latency(name: str, model: nn.Module, bundles: Path) -> Path:
    """The exported model; one that an earlier run left in the folder of ``--bundles`` is used again (weights are seeded)."""
    place = bundles / name
    return place if place.exists() else export(model, place, weights=False).path


def prepare(name: str, bundles: Path) -> dict[str, Any]:
    """Export alone, which may be done while the machine is busy."""
    bundle_for_latency(name, make(name), bundles)
    return {"model": name}


def measure_latency(name: str, bundles: Path) -> dict[str, Any]:
    """Milliseconds of one picture, in the engine and in PyTorch with the plain scan."""
    model = make(name)
    size = model.preprocessing.size  # type: ignore[union-attr]
    x = torch.randn(1, 3, *size)
    with torch.inference_mode(), scans("reference"):
        plain = least(lambda: model(x), SECONDS)
    row: dict[str, Any] = {"model": name, "pytorch_reference_ms": plain}
    try:
        bundle = bundle_for_latency(name, model, bundles)
    except ExportError:
        return row
    frame = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    with load(bundle, "ort-cpu") as engine:
        row["ort_kernel_ms"] = least(lambda: engine(frame), SECONDS)
    return row


MEASURES = {"parity": measure_parity, "latency": measure_latency, "prepare": prepare}


def worst(row: dict[str, Any], precision: str, backend: str) -> float | None:
    """The largest relative error over both kinds of pictures; None where one of them has none."""
    graph = row.get(precision, {})
    errors = [graph.get(kind, {}).get(backend, {}).get("error") for kind in ("synthetic", "photographs")]
    return None if None in errors else max(errors)


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Bars that were missed."""
    found = []
    for row in rows:
        for precision in PRECISIONS:
            for backend in ("ort-cpu", "ort-function"):
                error = worst(row, precision, backend)
                if error is None:
                    reason = row.get(precision, {}).get("error", "not compared")
                    found.append(f"{row['model']} {precision} {backend}: {reason}")
                elif error > BARS[precision]:
                    found.append(f"{row['model']} {precision} {backend}: {error:.1e}; the bar is {BARS[precision]:g}")
    return found


def render(document: dict[str, Any]) -> str:
    """The page."""
    rows = {row["model"]: row for row in document["rows"]}
    lines = [
        "# Models",
        "",
        f"Written by `python benchmarks/models_table.py` on {document['date'][:10]}: {document['cpu']}, "
        f"{document['cores']} cores, PyTorch {document['torch']}, ONNX Runtime {document['onnxruntime']}.",
        "",
        "GMACs count the scan. Parity is the largest |error| / max(1, |logit|) of the exported graph against PyTorch in float32, on "
        "synthetic pictures and scikit-image's photographs, with randomised weights (released ones cannot be had on the machine "
        "this was measured on); *kernel* is ONNX Runtime with our operator, *function* stock ONNX Runtime. "
        "Bars: 1e-4 in float32, 2e-2 in float16. Parameters are with the classes it was published with, files and the rest with a thousand. Latency: one picture, float32, two threads; *plain* is the same model in PyTorch with the "
        "scan in plain PyTorch. Top-1 is what the authors published for their weights on ImageNet-1k; we did not measure it.",
        "",
        "The code of all models is our own, written from descriptions and proved against vectors made with the official code; "
        "weights are their authors' and stay under their licences.",
    ]
    for family in families("classification").values():
        mine = (
            rows.get(name, {}) for name in list_models(task="classification") if model_entry(name).family == family.name
        )
        own = [row for row in mine if "gmacs" in row]  # a latency alone, where the other measurement failed, is no row
        if not own:
            continue
        own.sort(key=lambda row: (row["params"], row["size"], row["model"]))
        lines += [
            "",
            f"## {family.title}",
            "",
            f"{family.paper}. Licence of the official code and weights: {LICENCES[family.name]}.",
            "",
            "| model | params, M | GMACs | size | top-1 | ONNX fp32 / fp16, MiB | parity fp32 kernel / function "
            "| parity fp16 kernel / function | ms: kernel / plain |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in own]
        sources = sorted({row["source"] for row in own if row["top1"] is not None})
        if sources:
            lines += ["", f"Top-1 from: {'; '.join(sources)}."]
    missed = failures(list(rows.values()))
    lines += ["", "## Not met", "", *([f"- {line}" for line in missed] or ["Every figure above is within its bar."])]
    unmeasured = {
        "parity": [name for name in list_models(task="classification") if "gmacs" not in rows.get(name, {})],
        "latency": [name for name in list_models(task="classification") if "ort_kernel_ms" not in rows.get(name, {})],
    }
    lines += ["", *(f"No {kind} was measured for: {', '.join(names)}." for kind, names in unmeasured.items() if names)]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    def size(precision: str) -> str:
        return f"{row[precision]['mib']:.0f}" if "mib" in row[precision] else "-"

    def parity(precision: str) -> str:
        errors = (worst(row, precision, backend) for backend in ("ort-cpu", "ort-function"))
        return " / ".join("-" if error is None else f"{error:.1e}" for error in errors)

    height, width = row["size"]
    latency = " / ".join(f"{row[key]:.1f}" if key in row else "-" for key in ("ort_kernel_ms", "pytorch_reference_ms"))
    return (
        f"| {row['model']} | {row['params'] / 1e6:.1f} | {row['gmacs']:.2f} | {height}x{width} | {row['top1'] or '-'} "
        f"| {size('fp32')} / {size('fp16')} | {parity('fp32')} | {parity('fp16')} "
        f"| {latency} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="a pattern of names; default: all")
    parser.add_argument("--only", choices=MEASURES, help="one kind of measurement; default: both")
    parser.add_argument(
        "--bundles", type=Path, help="keep the graphs for the latencies here, and use those that are there"
    )
    parser.add_argument("--again", action="store_true", help="measure models that are in the file already")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory(prefix="models_table-")  # goes when the process ends
    bundles = options.bundles or Path(scratch.name)
    if options.one:
        kind, name = options.one
        torch.set_num_threads(2)
        print(json.dumps(MEASURES[kind](name, bundles)))
        return 0

    document = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    rows = {row["model"]: row for row in document["rows"]}
    # Small ones first: a run that is stopped leaves most.
    names = sorted(list_models(options.models, task="classification"), key=lambda name: model_entry(name).params)
    kinds = [options.only] if options.only else ["parity", "latency"]
    marks = {"parity": "gmacs", "latency": "pytorch_reference_ms", "prepare": "pytorch_reference_ms"}
    todo = [(k, n) for k in kinds for n in names if options.again or marks[k] not in rows.get(n, {})]
    for kind, name in track([] if options.render else todo, console=Console(stderr=True)):
        command = [sys.executable, __file__, "--bundles", str(bundles), "--one", kind, name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{name}, {kind}: stopped with exit code {run.returncode}", file=sys.stderr)
            continue
        if kind == "prepare":
            continue
        rows[name] = rows.get(name, {}) | json.loads(run.stdout.splitlines()[-1])
        head = {"benchmark": "models_table", "torch": package_version("torch")}
        document = {**head, "onnxruntime": package_version("onnxruntime"), **provenance(), "rows": list(rows.values())}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.json == RESULTS:
        PAGE.write_text(render(document))
    missed = failures(document["rows"])
    for line in missed:
        print(f"bar missed: {line}")
    return int(bool(missed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
