"""A data set on disk: what it is recognised by, its parts and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.pictures import PictureSet

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
