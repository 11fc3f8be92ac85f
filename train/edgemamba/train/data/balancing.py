"""Epochs in which each class is drawn equally often, however rare it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced_order(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.intp]:
    """What one epoch draws.

    As many draws as there are pictures, divided over the classes that occur to within one; which classes get one more
    turns with the epoch. The pictures of a class come in shuffled rounds: each is drawn once before any is drawn again.

    Args:
        labels: class of each picture.
        seed, epoch: of the draw; the same give the same.

    Returns:
        Integers (N,), indices of pictures, shuffled.
    """
    rng = np.random.default_rng((seed, epoch))
    classes = np.unique(labels)
    share, rest = divmod(len(labels), len(classes))
    drawn = []
    for place, label in enumerate(np.roll(classes, epoch * rest)):
        members = np.flatnonzero(labels == label)
        wanted = share + (place < rest)
        rounds = [rng.permutation(members) for _ in range(-(-wanted // len(members)))]
        drawn.append(np.concatenate([members[:0], *rounds])[:wanted])
    return rng.permutation(np.concatenate(drawn))
