"""The pictures that a comparison is made on: the user's, or seeded synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import open_source
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.preprocessing import FULL_SCALE, Preprocessing


@dataclass(frozen=True)
class Samples:
    """Preprocessed frames and what a report says about them.

    Attributes:
        frames: (N, H, W, 3) pictures or (N, C, D, H, W) patches, of the dtype and size of the graph's input.
        names: one per frame.
        kind: ``pictures``, ``volume`` or ``synthetic``.
        source: the folder's or file's name, without its path; empty for synthetic pictures.
        skipped: why frames of the source were left out.
        clinical: some frames came from DICOM; a report shows none of them.
    """

    frames: NDArray[np.generic]
    names: tuple[str, ...]
    kind: str
    source: str
    skipped: tuple[str, ...] = ()
    clinical: bool = False

    def pictures(self) -> NDArray[np.generic]:
        """Each frame to look at, (N, H, W, 3): of a patch the middle slice of its first modality, from least to greatest."""
        if self.frames.ndim == 4:
            return self.frames
        slices = self.frames[:, 0, self.frames.shape[2] // 2].astype(np.float32)
        low, high = (function(slices, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
        unit = (slices - low) / np.maximum(high - low, 1e-6)
        return np.repeat(unit[..., None], 3, axis=3)


def pictures(path: str | Path, recipe: Preprocessing, limit: int) -> Samples:
    """The first ``limit`` frames of anything that `edgemamba run` can read: a folder, an image, a video, DICOM.

    Raises:
        SourceError: nothing there can be read.
    """
    frames, names, clinical = [], [], False
    with open_source(path) as source:
        for frame in source:
            frames.append(recipe.fit(frame.pixels))
            names.append(f"{frame.source}#{frame.index}")
            clinical = clinical or "modality" in frame.metadata
            if len(frames) == limit:
                break
        skipped = tuple(source.skipped.reasons)
    if not frames:
        raise SourceError(f"{path}: there is no frame in it to compare on")
    return Samples(np.stack(frames), tuple(names), "pictures", Path(path).name, skipped, clinical)


def synthetic(recipe: Preprocessing, count: int, seed: int) -> Samples:
    """Seeded pictures with structure at several scales, and plain noise.

    Noise alone would leave most of a network in one regime (averages of noise are all alike); black and white are there because
    they are what goes wrong first in fixed ranges.
    """
    makers = {"blobs": _blobs, "waves": _waves, "checks": _checks, "noise": _noise, "ramp": _ramp, "flat": _flat}
    frames, names = [], []
    for index in range(count):
        name = list(makers)[index % len(makers)]
        unit = makers[name](np.random.default_rng((seed, index)), *recipe.size)
        full = FULL_SCALE[recipe.dtype]
        scaled = np.clip(unit, 0, 1) * full
        frames.append((np.rint(scaled) if full > 1 else scaled).astype(recipe.dtype))
        names.append(f"{name}-{index}")
    return Samples(np.stack(frames), tuple(names), "synthetic", "")


def _grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.mgrid[0:height, 0:width]
    return rows / height, columns / width


def _blobs(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Soft coloured discs on a grey ground."""
    rows, columns = _grid(height, width)
    picture = np.full((height, width, 3), generator.random())
    for _ in range(8):
        y, x, radius = generator.random(), generator.random(), generator.uniform(0.05, 0.4)
        weight = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)[..., None]
        picture = picture * (1 - weight) + generator.random(3) * weight
    return picture


def _waves(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """One plane wave per channel."""
    rows, columns = _grid(height, width)
    frequency, phase = generator.uniform(-30, 30, (2, 3)), generator.uniform(0, 2 * np.pi, 3)
    angle = 2 * np.pi * (rows[..., None] * frequency[0] + columns[..., None] * frequency[1]) + phase
    return 0.5 + 0.5 * np.sin(angle)


def _checks(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """A checkerboard in two colours."""
    side = int(generator.integers(1, 33))
    board = (np.arange(height)[:, None] // side + np.arange(width)[None, :] // side) % 2
    return generator.random((2, 3))[board]


def _noise(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    return generator.random((height, width, 3))


def _ramp(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """A linear gradient between two colours."""
    rows, columns = _grid(height, width)
    angle = generator.uniform(0, 2 * np.pi)
    position = 0.5 + 0.5 * ((rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle))[..., None]
    first, second = generator.random((2, 3))
    return first * (1 - position) + second * position


def _flat(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Black or white."""
    return np.full((height, width, 3), float(generator.integers(0, 2)))
