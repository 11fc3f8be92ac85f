"""Hold a share of the pictures out: the same share of each class, and no group on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def spread(labels: Sequence[int], groups: Sequence[str] | None, fraction: float, seed: int) -> list[bool]:
    """Choose which pictures to hold out.

    Groups are drawn in a seeded order, the larger ones first, and each goes to the side that brings the held-out counts of
    its classes closer to their targets. At least one picture of every class stays behind, so that a class that
    only one group has is never held out whole.

    Args:
        labels: class of each picture.
        groups: name of each picture's group (a patient: pictures of one group never part), or None where each picture
            stands alone.
        fraction: share of each class to hold out, between 0 and 1.
        seed: of the draw; the same seed gives the same choice for the same pictures in the same order.

    Returns:
        One flag a picture; True is held out.
    """
    if not labels:
        return []
    members: dict[str | int, list[int]] = defaultdict(list)
    for index in range(len(labels)):
        members[index if groups is None else groups[index]].append(index)

    classes = max(labels) + 1
    total = np.bincount(labels, minlength=classes)
    # A class of two pictures or more gives at least one.
    target = np.where(total > 1, np.maximum(1, np.rint(fraction * total)), 0)
    rest = total.copy()
    held = np.zeros(classes)

    names = list(members)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    order.sort(key=lambda name: -len(members[name]))
    chosen = [False] * len(labels)
    for name in order:
        share = np.bincount([labels[i] for i in members[name]], minlength=classes)
        closer = np.square(held + share - target).sum() < np.square(held - target).sum()
        leaves_some = np.all(rest[share > 0] > share[share > 0])
        if closer and leaves_some:
            held += share
            rest -= share
            for index in members[name]:
                chosen[index] = True
    return chosen
