"""Small data sets and settings that the tests of training share, and hooks into a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemamba.runtime.cli import main
from edgemamba.train.classifier import Classifier
from edgemamba.train.history import Row
from edgemamba.train.settings import TrainingSettings

CLASSES = ("blue", "green", "red")


def stripes(count: int, seed: int, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with a bright stripe whose place and colour tell the class, in turn: uint8 (N, size, size, 3), labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    images = rng.integers(0, 80, (count, size, size, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[8 * label : 8 * label + 8, :, label] += 120
    return images, labels


def write_npz(path: Path, *, train: int = 24, val: int = 12, test: int = 0, **extra: Any) -> Path:
    """A MedMNIST-like archive of stripes."""
    arrays: dict[str, Any] = dict(extra)
    for seed, (part, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        if count:
            images, labels = stripes(count, seed)
            arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **arrays)
    return path


#: What every run leaves in its folder, whatever its task.
RUN_FILES = frozenset(
    {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "curves.png",
        "config.json",
        "summary.json",
    }
)


def files_of(out: Path) -> set[str]:
    """All files in a folder of a run, by their path in it."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def tiny(data: Path, out: Path, **changes: Any) -> TrainingSettings:
    """Settings of a run of seconds: a MedMamba of two small stages at 32x32."""
    fields: dict[str, Any] = {
        "model": "medmamba_t",
        "data": str(data),
        "out": str(out),
        "epochs": 3,
        "config": {"dims": (16, 32), "depths": (1, 1), "d_state": 4},
        "image_size": (32, 32),
        "batch_size": 8,
        "workers": 0,
        "lr": 3e-3,
        "warmup_epochs": 0,
        "accelerator": "cpu",
        "devices": "1",
    }
    return TrainingSettings.parse(**(fields | changes))


def record_losses(note: Callable[[int, float], None]) -> Callable[[Classifier, Any, int], torch.Tensor]:
    """What to put in the place of ``Classifier.training_step`` to be told each batch's number in the run, and its loss."""
    original = Classifier.training_step

    def step(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)
        note(self.current_epoch * int(self.trainer.num_training_batches) + batch_idx, loss.item())
        return loss

    return step


def before_batch(number: int, accident: Callable[[], None]) -> Callable[[Classifier, Any, int], None]:
    """What to put in the place of ``Classifier.on_train_batch_start`` to have something happen at a batch of that number."""
    original = Classifier.on_train_batch_start

    def start(self: Classifier, batch: Any, batch_idx: int) -> None:
        original(self, batch, batch_idx)
        if self.current_epoch * int(self.trainer.num_training_batches) + batch_idx == number:
            accident()

    return start


def tiny_vim(data: Path, out: Path, **changes: Any) -> TrainingSettings:
    """Settings of a run of seconds with layer norms only: what a batch is divided into makes no difference to it."""
    fields: dict[str, Any] = {
        "model": "vim_tiny",
        "config": {"embed_dim": 16, "depth": 2, "d_state": 4},
        "drop_path": 0.0,
    }
    return tiny(data, out, **(fields | changes))


def arguments(settings: TrainingSettings) -> list[str]:
    """Of `edgemamba train`, for settings of :func:`tiny`."""
    options = ["train", "--no-augment"] if not settings.augmentation.enabled else ["train"]
    defaults = TrainingSettings(model="", data="", out="").model_dump()
    spelled = {"optimizer": "opt", "scheduler": "sched"}
    for name, value in settings.model_dump().items():
        if name == "config":
            options += [word for key, field in value.items() for word in ("--set", f"{key}={field}")]
        elif name == "image_size":
            options += ["--image-size", f"{value[0]}x{value[1]}"]
        elif name != "augmentation" and value != defaults[name]:
            option = spelled.get(name, name).replace("_", "-")
            if isinstance(value, bool):
                options.append(f"--{option}" if value else f"--no-{option}")
            else:
                options += [f"--{option}", str(value)]
    return options


def figures(history: list[Row]) -> list[float]:
    """All that a history says, but for the time it took."""
    return [value for row in history for name, value in row.items() if name != "seconds"]


def call(*words: str | Path) -> int:
    """The exit status of `edgemamba ...` in this process."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


TINY_OPTIONS = [
    "--model",
    "medmamba_t",
    "--set",
    "dims=16,32",
    "--set",
    "depths=1,1",
    "--set",
    "d_state=4",
    "--image-size",
    "32",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--epochs",
    "1",
    "--accelerator",
    "cpu",
    "--limit-train-batches",
    "1",
]
