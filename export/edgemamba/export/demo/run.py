"""The demo's steps, one after the other, each timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgemamba.export.demo.held_out import REPEAT, write_dicom, write_truth, write_video
from edgemamba.export.demo.planes import PLANES, SIDE, Pictures, make_pictures, save_npz, to_uint16
from edgemamba.export.demo.plot import plot_demo
from edgemamba.export.exporting import export
from edgemamba.export.parity import ParityReport
from edgemamba.export.verification import verify
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines import Engine, load
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks import open_sink
from edgemamba.runtime.streaming import stream
from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.data.transforms import evaluation_transform
from edgemamba.train.metrics import wilson_interval
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import TrainingResult, train

CHANCE = 1 / len(PLANES)


@dataclass(frozen=True)
class Scale:
    """How much the demo does.

    Attributes:
        pictures: training and validation pictures of each plane.
        dims, depths: of the MedMamba.
        image_size: side of its input, in pixels.
        samples: pictures that PyTorch and the engines are compared on.
    """

    pictures: tuple[int, int]
    epochs: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: int
    samples: int


FULL = Scale((240, 40), 14, (24, 48, 96), (1, 1, 1), 64, 32)
QUICK = Scale((120, 12), 9, (16, 32, 64), (1, 1, 1), 48, 8)


@dataclass
class DemoReport:
    """Figures of a demo, for ``summary.json``.

    Attributes:
        accuracy, interval, n: top-1 of PyTorch on the test part, its Wilson 95 % interval, and the number of pictures.
        streamed: share of frames that the exported engine labels rightly, by source.
        disagreements: frames of the DICOM file where the engine's label is not PyTorch's.
        parity: whether the verification passed; ``max_abs_error`` of the logits by backend.
        seconds: by step.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    parity: bool
    max_abs_error: dict[str, float]
    disagreements: int = 0
    streamed: dict[str, float] = field(default_factory=dict)
    frames_per_second: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """The engines agree with PyTorch, and the model is better than chance beyond the interval's doubt."""
        return self.parity and self.interval[0] > CHANCE


def run_demo(out: Path, scale: Scale, seed: int, console: Console) -> DemoReport:
    """Train, export, verify and stream into a new folder.

    Args:
        out: the folder; it must not exist.
        scale: :data:`FULL` or :data:`QUICK`.
        seed: of the pictures, the weights and the training.
        console: for what it says.

    Raises:
        MissingExtraError: nilearn is not installed.
        EdgeMambaError: a step failed; what the earlier ones wrote stays.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        console.rule(f"[bold]{len(seconds) + 1}. {name}", align="left")
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start
        console.print(f"[dim]{seconds[name]:.1f} s[/dim]")

    with step("real slices, kept apart"):
        pictures = make_pictures({"train": scale.pictures[0], "val": scale.pictures[1], "test": None}, seed)
        try:
            out.mkdir(parents=True)
        except OSError as error:
            raise SinkError(f"{out} cannot be made: {error.strerror}") from None
        save_npz(out / "planes.npz", pictures)
        held_out = pictures["test"]
        write_dicom(out / "held_out.dcm", held_out)
        write_video(out / "held_out.mp4", held_out)
        write_truth(out / "held_out.csv", held_out)
        _say_data(console, pictures)
    with step("training"), _one_thread():
        result = train(_settings(out, scale, seed), console=console)
        assert result is not None
        assert result.test is not None
        right = int(result.test.confusion.trace())
        interval = wilson_interval(right, result.test.count)
        console.print(
            f"test: [bold]{result.test.top1:.1%}[/bold] of n = {result.test.count} held-out slices "
            f"(95 % interval {interval[0]:.1%} to {interval[1]:.1%}; chance is {CHANCE:.1%})",
            soft_wrap=True,
        )
    with step("export"):
        model, class_names, _ = read_training_checkpoint(result.best)
        bundle = export(model, out / "bundle", class_names=class_names, source=result.best)
        size = (bundle.path / "model.onnx").stat().st_size
        console.print(f"{escape(str(bundle.path))}: model.onnx, {size / 2**20:.2f} MiB")
    with step("verification on held-out slices"):
        parity = verify(bundle, inputs=out / "held_out.dcm", samples=min(scale.samples, len(held_out.images)))
        _say_parity(console, parity)
    report = DemoReport(result.test.top1, interval, result.test.count, parity.passed, parity.max_abs_error())
    with step("streaming through the runtime"), load(bundle.path) as engine:
        predicted = _stream(console, report, engine, out, "held_out.dcm", held_out.labels)
        _stream(console, report, engine, out, "held_out.mp4", np.repeat(held_out.labels, REPEAT))
        report.disagreements = int(np.count_nonzero(predicted != _torch_labels(result, bundle, held_out)))
        console.print(f"engine and PyTorch disagree on {report.disagreements} of {len(predicted)} DICOM frames")
    with step("plot and summary"):
        plot_demo(out / "demo.png", result.history, result.test, held_out, predicted)
        report.seconds = {name: round(value, 1) for name, value in seconds.items()}
        (out / "summary.json").write_text(json.dumps(summary(report), indent=2) + "\n")
    return report


def summary(report: DemoReport) -> dict[str, Any]:
    """JSON-able."""
    return {**asdict(report), "passed": report.passed, "chance": CHANCE}


def _settings(out: Path, scale: Scale, seed: int) -> TrainingSettings:
    return TrainingSettings.parse(
        model="medmamba_t",
        config={"dims": scale.dims, "depths": scale.depths, "d_state": 8, "drop_path_rate": 0.0},
        data=str(out / "planes.npz"),
        out=str(out / "training"),
        image_size=(scale.image_size, scale.image_size),
        epochs=scale.epochs,
        batch_size=24,
        lr=3e-3,
        warmup_epochs=1,
        ema_decay=0.98,
        monitor="loss",
        label_smoothing=0.05,
        augmentation={"crop_scale": 0.8, "hflip": 0.5, "color_jitter": 0.2},
        seed=seed,
        workers=0,
        accelerator="cpu",
        devices="1",
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread.

    A model as small as this gains a tenth from a second one; and where other programs want the cores too, OpenMP's threads
    wait for each other by spinning, which was seen to make an epoch thirty times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _say_data(console: Console, pictures: dict[Any, Pictures]) -> None:
    train_slices, test_slices = (len(set(pictures[part].slices)) for part in ("train", "test"))
    console.print(
        f"MNI152 T1 (nilearn's wheel; ICBM152 2009, an [bold]average of 152 brains[/bold]): {train_slices} training slices "
        f"seen in {len(pictures['train'].images)} random views, {test_slices} test slices in one view each, "
        f"{SIDE}x{SIDE} of 12 bits. Slices 1 mm apart look nearly the same, so parts are blocks of slices with 5 mm "
        "between them; the template's halves are mirror images, so sagittal slices come from one half only. One brain all the "
        "same: this shows that the plumbing works, and nothing about patients.",
    )


def _say_parity(console: Console, parity: ParityReport) -> None:
    table = Table("backend", "max |dlogit|", "verdict", box=None, header_style="bold")
    errors = parity.max_abs_error()
    for backend in parity.backends:
        error = f"{errors[backend.backend]:.1e}" if backend.backend in errors else "-"
        table.add_row(backend.backend, error, "passed" if backend.passed else "[red]failed[/red]")
    console.print(table)


def _stream(
    console: Console, report: DemoReport, engine: Engine, out: Path, name: str, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Stream one source into an annotated video and a JSON Lines file; gives the label of every frame."""
    stem = f"{Path(name).suffix[1:]}_result"
    sinks = [open_sink(out / f"{stem}.mp4"), open_sink(out / f"{stem}.jsonl")]
    with stream(out / name, engine, sinks=sinks) as results:
        predicted = np.array([result.top[0].index for result in results], np.int64)
    figures = results.report
    share = float(np.mean(predicted == labels)) if len(predicted) == len(labels) else float("nan")
    report.streamed[name] = share
    report.frames_per_second[name] = round(figures.fps, 1)
    console.print(
        f"{name}: {figures.frames} frames at {figures.fps:.0f} frames/s with {engine.backend}, {share:.1%} right "
        f"-> {stem}.mp4, {stem}.jsonl",
        highlight=False,
    )
    return predicted


def _torch_labels(result: TrainingResult, bundle: Bundle, held_out: Pictures) -> NDArray[np.int64]:
    """What the trained PyTorch model says of the held-out pictures."""
    transform = evaluation_transform(bundle.manifest.preprocessing)
    pixels = torch.stack([transform(image[..., None]) for image in to_uint16(held_out.images)])
    with torch.inference_mode():
        labels: NDArray[np.int64] = result.model.eval()(pixels).argmax(dim=1).numpy()
    return labels
