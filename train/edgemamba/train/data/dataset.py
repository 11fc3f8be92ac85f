"""A data set on disk: what it is recognised by, its parts and its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.split import spread

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

# What people call the parts in folders and tables.
PART_OF: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

#: Share of each class that is held out for validation where a data set brings no parts of its own.
DEFAULT_VAL_FRACTION = 0.2


@dataclass(frozen=True)
class ImageDataset:
    """A labelled set of pictures in up to three parts.

    Attributes:
        origin: the path it was opened from.
        class_names: in the order of the labels.
        parts: ``train`` and ``val`` always, ``test`` where there is one.
    """

    origin: str
    class_names: tuple[str, ...]
    parts: Mapping[Part, PictureSet]

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(f"{self.origin} has only one class ({self.class_names[0]}); a classifier needs two or more")
        counts = self.counts()
        for part, row in counts.items():
            if sum(row) == 0:
                raise DataError(f"{self.origin}: the {part} part is empty")
        missing = [name for name, count in zip(self.class_names, counts["train"], strict=True) if count == 0]
        if missing:
            raise DataError(f"{self.origin}: no training picture of class {', '.join(missing)}")

    @property
    def train(self) -> PictureSet:
        return self.parts["train"]

    @property
    def val(self) -> PictureSet:
        return self.parts["val"]

    @property
    def test(self) -> PictureSet | None:
        return self.parts.get("test")

    def counts(self) -> dict[Part, list[int]]:
        """Pictures of each class, by part."""
        classes = len(self.class_names)
        return {
            part: np.bincount(self.parts[part].labels, minlength=classes).tolist()
            for part in PARTS
            if part in self.parts
        }


def hold_out(
    labels: Sequence[int],
    groups: Sequence[str] | None,
    *,
    origin: str,
    has_parts: bool,
    val_fraction: float | None,
    seed: int,
) -> list[bool]:
    """Which pictures to hold out for validation where a data set has no validation part.

    Args:
        labels: class of each picture that may be held out.
        groups: what each picture must stay together with (a patient), or None.
        origin: the data set, for messages.
        has_parts: the data set names parts (a ``train`` folder, a ``split`` column). It is then taken at its word, and
            nothing is held out unless ``val_fraction`` is given.
        val_fraction: share of each class; None for :data:`DEFAULT_VAL_FRACTION` where there are no parts at all.
        seed: of the draw.

    Raises:
        DataError: there is no validation part and none was asked for, or no picture could be held out.
    """
    if val_fraction is None:
        if has_parts:
            raise DataError(
                f"{origin} has a training part and no validation part; add one (val), or hold a share of the training "
                "part out with --val-fraction 0.2"
            )
        val_fraction = DEFAULT_VAL_FRACTION
    if not 0 < val_fraction < 1:
        raise DataError(f"--val-fraction is {val_fraction}; it must lie between 0 and 1")
    held_out = spread(labels, groups, val_fraction, seed)
    if not any(held_out):
        raise DataError(f"{origin} has too few pictures to hold {val_fraction:.0%} out for validation")
    return held_out
