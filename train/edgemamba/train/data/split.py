"""Divide pictures: the same share of each class on every side, and no group on two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: What each picture must stay together with (a patient); None for one that stands alone, or for all of them.
Groups = Sequence[str | None] | None


def spread(labels: Sequence[int], groups: Groups, fraction: float, seed: int) -> list[bool]:
    """Choose which pictures to hold out.

    Groups are drawn in a seeded order, the larger ones first, and each goes to the side that brings the held-out counts of
    its classes closer to their targets. At least one picture of every class stays behind, so that a class that
    only one group has is never held out whole.

    Args:
        labels: class of each picture.
        groups: name of each picture's group (a patient: pictures of one group never part).
        fraction: share of each class to hold out, between 0 and 1.
        seed: of the draw; the same seed gives the same choice for the same pictures in the same order.

    Returns:
        One flag a picture; True is held out.
    """
    if not labels:
        return []
    classes = max(labels) + 1
    total = np.bincount(labels, minlength=classes)
    # A class of two pictures or more gives at least one.
    target = np.where(total > 1, np.maximum(1, np.rint(fraction * total)), 0)
    rest = total.copy()
    held = np.zeros(classes)

    if groups is None:
        return _spread_alone(labels, np.minimum(target, np.maximum(total - 1, 0)), seed)
    chosen = [False] * len(labels)
    for members in _drawn(len(labels), groups, seed):
        share = np.bincount([labels[i] for i in members], minlength=classes)
        closer = np.square(held + share - target).sum() < np.square(held - target).sum()
        leaves_some = np.all(rest[share > 0] > share[share > 0])
        if closer and leaves_some:
            held += share
            rest -= share
            for index in members:
                chosen[index] = True
    return chosen


def _spread_alone(labels: Sequence[int], wanted: NDArray[np.generic], seed: int) -> list[bool]:
    """The same choice where every picture stands alone, without a step for each of them: the first few drawn of a class."""
    drawn = np.random.default_rng(seed).permutation(len(labels))
    by_class = drawn[np.argsort(np.asarray(labels)[drawn], kind="stable")]
    sizes = np.bincount(labels)
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class] = place_in_class < np.repeat(wanted, sizes)
    found: list[bool] = chosen.tolist()
    return found


def folds(labels: Sequence[int], groups: Groups, count: int, seed: int) -> NDArray[np.int64]:
    """Divide pictures into folds for cross-validation.

    Groups are drawn in a seeded order, the larger ones first, and each goes to the fold that has the smallest share of its
    classes so far (of equals, to the one with the fewest pictures). Pictures that stand alone are dealt
    class by class, so that folds differ by one picture of a class at most.

    Args:
        labels: class of each picture.
        groups: name of each picture's group.
        count: of folds; not more than there are groups.
        seed: of the draw; the same seed gives the same folds for the same pictures in the same order.

    Returns:
        int64 (N,): the fold of each picture, from 0. No fold is empty.
    """
    classes = max(labels, default=0) + 1
    total = np.bincount(labels, minlength=classes)
    fold_of = np.zeros(len(labels), np.int64)
    if groups is None:
        drawn = np.random.default_rng(seed).permutation(len(labels))
        by_class = drawn[np.argsort(np.asarray(labels)[drawn], kind="stable")]
        fold_of[by_class] = np.arange(len(labels)) % count
        return fold_of
    held = np.zeros((count, classes))
    for members in _drawn(len(labels), groups, seed):
        share = np.bincount([labels[i] for i in members], minlength=classes)
        # How much the squared shares would grow; where a class is absent, its total does not matter.
        growth = ((2 * held + share) * share / np.maximum(total, 1) ** 2).sum(axis=1)
        fold = int(np.lexsort((held.sum(axis=1), growth))[0])
        held[fold] += share
        fold_of[members] = fold
    return fold_of


def _drawn(count: int, groups: Groups, seed: int) -> list[list[int]]:
    """The pictures of each group, in a seeded order of the groups with the larger ones first."""
    members: dict[str | int, list[int]] = defaultdict(list)
    for index in range(count):
        group = None if groups is None else groups[index]
        members[index if group is None else group].append(index)
    names = list(members)
    order = [members[names[i]] for i in np.random.default_rng(seed).permutation(len(names))]
    return sorted(order, key=len, reverse=True)
