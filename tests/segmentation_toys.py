"""Data sets of segmentation for tests: slices of a real brain with their tissues, and made shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgemamba.train.segmentation.settings import SegmentationSettings

TISSUES = ("background", "grey matter", "white matter")
# Axial slices of the MNI152 template, in mm; blocks with gaps between the parts, for neighbours look alike.
SLICES = {"train": (*range(-20, 4, 2), *range(30, 54, 2)), "val": range(12, 22, 3), "test": range(60, 68, 3)}


def brain_tissues() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The ICBM152 T1 template at 2 mm and the likelier of its grey and white matter maps, from nilearn's wheel.

    Returns:
        uint8 (99, 117, 95), left to right, back to front, bottom to top; and labels: 1 grey, 2 white matter, 0 elsewhere.
    """
    datasets = pytest.importorskip("nilearn.datasets")
    volume, grey, white = (
        np.asarray(load(resolution=2).get_fdata(), np.float32)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    labels = np.select([(grey > 0.5) & (grey >= white), white > 0.5], [1, 2], 0).astype(np.uint8)
    return np.rint(np.clip(volume / volume.max(), 0, 1) * 255).astype(np.uint8), labels


def as_scanned(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The slice with another contrast, as sequences and coils give it: another gamma and gain, a bias that changes
    over the picture, noise. No fixed grey value tells the tissues any more."""
    head = image > 8
    grey = (image / 255) ** rng.uniform(0.6, 1.8)
    y, x = (np.linspace(-1, 1, side) for side in image.shape)
    field = np.exp(
        0.35 * (rng.uniform(-1, 1) * y[:, None] + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * np.outer(y, x))
    )
    noisy = rng.uniform(110, 220) * grey * field * head + rng.normal(0, 6, image.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


def brain_slices(part: str, each: int = 1) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Axial slices of a part, 117 x 99 pixels of 2 mm, each scanned so many times, and their tissues."""
    volume, labels = brain_tissues()
    made = {}
    for position in SLICES[part]:
        z = (position + 72) // 2  # the first slice is at -72 mm
        for take in range(each):
            image = as_scanned(volume[:, ::-1, z].T, np.random.default_rng((position + 100, take)))
            made[f"axial{position:+03d}_{take}"] = image, labels[:, ::-1, z].T
    return made


def write_brain(root: Path, each: int = 2) -> Path:
    """A data set of axial slices by blocks in three parts."""
    for part in SLICES:
        for name, (image, mask) in brain_slices(part, each if part == "train" else 1).items():
            write_pair(root / part, name, image, mask)
    (root / "classes.txt").write_text("\n".join(TISSUES) + "\n")
    return root


def write_pair(folder: Path, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> None:
    """``images/NAME.png`` and ``masks/NAME.png``."""
    for kind, pixels in (("images", image), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            Image.fromarray(np.ascontiguousarray(pixels)).save(folder / kind / f"{name}.png")


def discs(count: int, seed: int = 0, size: int = 32) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Noise with a bright disc somewhere, and where it is; the last two rows are ignored."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    made = []
    for _ in range(count):
        cy, cx, r = (*rng.integers(size // 4, 3 * size // 4, 2).tolist(), int(rng.integers(size // 6, size // 4)))
        mask = ((y - cy) ** 2 + (x - cx) ** 2 <= r * r).astype(np.uint8)
        image = rng.integers(0, 60, (size, size)) + 130 * mask
        mask[-2:] = 255
        made.append((image.astype(np.uint8), mask))
    return made


def write_discs(root: Path, count: int = 10) -> Path:
    """A data set of discs without parts."""
    for i, (image, mask) in enumerate(discs(count)):
        write_pair(root, f"disc{i}", image, mask)
    return root


def tiny_segmentation(data: Path, out: Path, **changes: Any) -> SegmentationSettings:
    """Settings of a run of seconds: a MedMamba of two small stages with a small FPN."""
    fields: dict[str, Any] = {
        "model": "medmamba_t",
        "data": str(data),
        "out": str(out),
        "epochs": 2,
        "config": {"dims": (16, 32), "depths": (1, 1), "d_state": 4},
        "head_dim": 16,
        "size": (32, 32),
        "batch_size": 4,
        "workers": 0,
        "lr": 3e-3,
        "warmup_epochs": 0,
        "accelerator": "cpu",
        "devices": "1",
    }
    return SegmentationSettings.parse(**(fields | changes))


if __name__ == "__main__":
    # python tests/segmentation_toys.py FOLDER: the data of the run in docs/segmentation.md.
    write_brain(Path(sys.argv[1]), each=4)
