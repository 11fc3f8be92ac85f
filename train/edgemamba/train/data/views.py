"""Pictures of other sets: some of them, or of several sets one after the other. Nothing is copied, and names stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemamba.train.data.pictures import Look, PictureSet


class PictureView(PictureSet):
    """Asks another set for each picture."""

    @abstractmethod
    def find(self, index: int) -> tuple[PictureSet, int]:
        """The set that a picture is in, and its index there."""

    def name(self, index: int) -> str:
        pictures, inner = self.find(index)
        return pictures.name(inner)

    def read(self, index: int) -> NDArray[np.generic]:
        pictures, inner = self.find(index)
        return pictures.read(inner)

    def look(self, index: int) -> Look:
        pictures, inner = self.find(index)
        return pictures.look(inner)

    def bulk(self, index: int) -> Hashable:
        pictures, inner = self.find(index)
        return pictures.bulk(inner)

    def stamp(self, index: int) -> str | None:
        pictures, inner = self.find(index)
        return pictures.stamp(inner)


class PickedPictures(PictureView):
    """Some pictures of a set.

    Args:
        pictures: the set.
        indices: integers (M,) into it, in any order.
    """

    def __init__(self, pictures: PictureSet, indices: NDArray[np.intp]) -> None:
        self.pictures = pictures
        self.indices = indices
        self.labels = pictures.labels[indices]
        if pictures.groups is not None:
            self.groups = tuple(pictures.groups[index] for index in indices)

    def find(self, index: int) -> tuple[PictureSet, int]:
        return self.pictures, int(self.indices[index])


class JoinedPictures(PictureView):
    """Sets one after the other."""

    def __init__(self, sets: Sequence[PictureSet]) -> None:
        self.sets = tuple(sets)
        self.labels = np.concatenate([pictures.labels for pictures in sets])
        self._starts = np.cumsum([0, *map(len, sets)])
        if any(pictures.groups is not None for pictures in sets):
            self.groups = tuple(group for pictures in sets for group in (pictures.groups or (None,) * len(pictures)))

    def find(self, index: int) -> tuple[PictureSet, int]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[place], index - int(self._starts[place])
