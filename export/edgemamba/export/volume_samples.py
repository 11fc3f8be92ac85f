"""The patches that a comparison of models of volumes is made on: of the user's volumes, or seeded synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemamba.export.inputs import Samples
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.runtime.volumes.preparing import prepare
from edgemamba.runtime.volumes.reading import read_volumes
from edgemamba.runtime.volumes.windows import crop, window_starts


def patches(path: str | Path, card: VolumeCard, limit: int) -> Samples:
    """``limit`` windows of a volume, spread evenly over those that a device would run.

    Raises:
        SourceError: it cannot be read, or has not the card's modalities.
    """
    study = read_volumes([str(path)], card.modalities)
    grid = prepare(study, card)
    starts = window_starts(grid.values.shape[1:], card.patch, card.overlap)
    chosen = [starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, limit).astype(int))]
    frames = np.stack([crop(grid.values, start, card.patch) for start in chosen])
    names = tuple("window at " + ", ".join(map(str, start)) for start in chosen)
    return Samples(frames, names, "volume", Path(path).name, clinical=True)


def synthetic(card: VolumeCard, count: int, seed: int) -> Samples:
    """Seeded patches with structure at several scales, and plain noise, of mean 0 and variance 1 or near it."""
    makers = {"blobs": _blobs, "noise": _noise, "waves": _waves, "border": _border}
    frames, names = [], []
    for index in range(count):
        name = list(makers)[index % len(makers)]
        generator = np.random.default_rng((seed, index))
        frames.append(np.stack([makers[name](generator, card.patch) for _ in card.modalities]))
        names.append(f"{name}-{index}")
    return Samples(np.stack(frames), tuple(names), "synthetic", "")


def _grid(size: tuple[int, int, int]) -> tuple[NDArray[np.float32], ...]:
    axes = (np.linspace(0, 1, side, dtype=np.float32) for side in size)
    return tuple(np.meshgrid(*axes, indexing="ij", sparse=True))


def _noise(generator: np.random.Generator, size: tuple[int, int, int]) -> NDArray[np.float32]:
    return generator.standard_normal(size, np.float32)


def _blobs(generator: np.random.Generator, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Soft balls, bright and dark."""
    z, y, x = _grid(size)
    volume = np.zeros(size, np.float32)
    for _ in range(6):
        (a, b, c), radius = generator.random(3), generator.uniform(0.05, 0.4)
        distance = (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2
        volume += np.float32(generator.uniform(-2, 2)) * np.exp(-distance / radius**2, dtype=np.float32)
    return volume


def _waves(generator: np.random.Generator, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """One plane wave."""
    z, y, x = _grid(size)
    a, b, c = generator.uniform(-30, 30, 3).astype(np.float32)
    return np.sin(a * z + b * y + c * x, dtype=np.float32)


def _border(generator: np.random.Generator, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Half of it outside the body, exactly 0, as z-scored volumes are."""
    volume = generator.standard_normal(size, np.float32)
    volume[:, :, : size[2] // 2] = 0
    return volume
