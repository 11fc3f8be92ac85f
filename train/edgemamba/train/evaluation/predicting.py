"""Logits of labelled pictures, from anything that classifies: every picture is decoded and fitted once, by the runtime's code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.data.loading import EvaluationItems, collate
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.unreadable import check_unreadable


class Candidate(Protocol):
    """Something that classifies.

    Attributes:
        label: what a table calls it.
        preprocessing: how pictures become its input.
        class_names: of its logits, in their order; empty where it has none.
        num_classes: how many logits it gives.
        precision: of its weights: ``fp32`` or ``fp16``.
    """

    label: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    num_classes: int
    precision: str

    def __call__(self, frames: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits (B, num_classes) of frames (B, H, W, 3) that the preprocessing has fitted."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a candidate says of a set of pictures.

    Attributes:
        logits: float32 (N, C), of the pictures that could be read.
        labels: int64 (N,).
        names: of the pictures.
        groups: what they belong to (patients), where that is known; never shown to anyone.
        unreadable: name and reason of the pictures that could not be read.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    groups: tuple[str | None, ...] | None
    unreadable: dict[str, str]

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax over the classes (N, C), in float64: in float32 sure answers tie at 1."""
        return torch.from_numpy(self.logits).double().softmax(dim=1).numpy()

    def with_classes(self, columns: NDArray[np.int64], numbers: NDArray[np.int64]) -> Outcome:
        """The same with other numbers for the classes: logits of ``columns``, and label i called ``numbers[i]``."""
        return Outcome(self.logits[:, columns], numbers[self.labels], self.names, self.groups, self.unreadable)


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of one candidate on several sets, as on one."""
    known = any(outcome.groups is not None for outcome in outcomes)
    groups = tuple(group for o in outcomes for group in (o.groups or (None,) * len(o.names)))
    return Outcome(
        np.concatenate([outcome.logits for outcome in outcomes]),
        np.concatenate([outcome.labels for outcome in outcomes]),
        tuple(name for outcome in outcomes for name in outcome.names),
        groups if known else None,
        {name: reason for outcome in outcomes for name, reason in outcome.unreadable.items()},
    )


def predict(
    candidates: Sequence[Candidate],
    pictures: PictureSet,
    *,
    batch_size: int,
    workers: int = 0,
    flip: bool = False,
    max_unreadable: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Show the same pictures to every candidate.

    Args:
        candidates: those with the same preprocessing are shown the very same arrays.
        pictures: of one part of a data set.
        batch_size: pictures at a time.
        workers: processes that decode.
        flip: also show every picture mirrored left to right, and take the mean of the logits.
        max_unreadable: the share of the pictures that may be unreadable; they are left out and listed.
        progress: told after each batch how many pictures were shown, all passes together: each kind of preprocessing makes
            one pass.

    Raises:
        DataError: there is no picture, or too many of them cannot be read.
        EngineError: an engine failed.
    """
    if not len(pictures):
        raise DataError("there is no picture to evaluate on")
    outcomes: dict[int, Outcome] = {}
    for recipe in dict.fromkeys(candidate.preprocessing for candidate in candidates):
        shown = [index for index, candidate in enumerate(candidates) if candidate.preprocessing == recipe]
        logits: list[list[NDArray[np.float32]]] = [[] for _ in shown]
        unreadable: dict[str, str] = {}
        for batch in _loader(pictures, recipe, batch_size, workers):
            unreadable |= batch.unreadable
            check_unreadable(unreadable, len(pictures), max_unreadable, "; --max-unreadable allows more")
            if len(batch.pixels):
                frames = batch.pixels.numpy()
                for found, index in zip(logits, shown, strict=True):
                    found.append(_logits(candidates[index], frames, flip))
            progress(len(batch.labels) + len(batch.unreadable))
        if not logits[0]:
            raise DataError(
                f"none of the {len(pictures)} pictures can be read; the first: {next(iter(unreadable.values()))}"
            )
        kept = [index for index in range(len(pictures)) if pictures.name(index) not in unreadable]
        names = tuple(pictures.name(index) for index in kept)
        groups = None if pictures.groups is None else tuple(pictures.groups[index] for index in kept)
        for found, index in zip(logits, shown, strict=True):
            outcomes[index] = Outcome(np.concatenate(found), pictures.labels[kept], names, groups, unreadable)
    return [outcomes[index] for index in range(len(candidates))]


def passes(candidates: Sequence[Candidate]) -> int:
    """How often :func:`predict` goes through the pictures."""
    return len({candidate.preprocessing for candidate in candidates})


def _loader(pictures: PictureSet, recipe: Preprocessing, batch_size: int, workers: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(
        EvaluationItems(pictures, partial(_fitted, recipe)),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
    )


def _fitted(recipe: Preprocessing, pixels: NDArray[np.generic]) -> Tensor:
    """One frame (H, W, 3) as a tensor, which is what loaders pass between processes."""
    # Of a picture that needed no fitting, a view; it may be of pixels that are not ours to write to.
    return torch.from_numpy(np.require(recipe.fit(pixels), requirements="W"))


def _logits(candidate: Candidate, frames: NDArray[np.generic], flip: bool) -> NDArray[np.float32]:
    logits = candidate(frames)
    if flip:
        logits = (logits + candidate(np.ascontiguousarray(frames[:, :, ::-1]))) / np.float32(2)
    return logits
