"""From a study's volumes to the model's input: orientation, spacing, normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.volumes.card import Normalisation, VolumeCard
from edgemamba.runtime.volumes.grids import Grid, Turn, resize, resized_shape
from edgemamba.runtime.volumes.reading import Study

__all__ = ["Prepared", "normalise", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A model's input, and the way back to the source.

    Attributes:
        values: float32 (C, D, H, W), normalised.
        turn: from the source's axes to the model's.
        turned: shape of the source after that turn, before resampling.
        grid: of ``values``.
    """

    values: NDArray[np.float32]
    turn: Turn
    turned: tuple[int, int, int]
    grid: Grid


def prepare(study: Study, card: VolumeCard) -> Prepared:
    """Turn, resample and normalise, as the card says. Frees nothing of the study.

    Raises:
        SourceError: it would have too many voxels at the card's spacing.
    """
    turn = Turn.to(study.grid, card.orientation)
    turned = turn.grid(study.grid)
    shape = resized_shape(turned, card.spacing, study.name)
    values = np.empty((len(study.channels), *shape), np.float32)
    for index, channel in enumerate(study.channels):
        values[index] = resize(np.asarray(turn.apply(channel), np.float32), shape)
        normalise(values[index], card.normalisation_of(index))
    return Prepared(values, turn, turned.shape, turned.resized(shape))


def normalise(values: NDArray[np.float32], how: Normalisation) -> None:
    """In place; see :class:`~edgemamba.runtime.volumes.card.Normalisation`. Sums are of float64."""
    if how.kind == "none":
        return
    if how.kind == "window":
        assert how.low is not None
        assert how.high is not None
        mean = how.low if how.mean is None else how.mean
        std = how.high - how.low if how.std is None else how.std
        np.clip(values, how.low, how.high, out=values)
        values -= np.float32(mean)
        values /= np.float32(std)
        return
    where = values != 0 if how.kind == "zscore_nonzero" else np.ones(values.shape, bool)
    chosen = values[where].astype(np.float64)
    if chosen.size:
        std = float(chosen.std()) or 1.0
        values[where] = (chosen - chosen.mean()) / std
