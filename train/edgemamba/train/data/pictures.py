"""Labelled pictures, wherever they lie: in files, or in one array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.runtime.preprocessing import FULL_SCALE
from edgemamba.runtime.sources.pictures import looks_like_dicom, read_image

PixelType = Literal["uint8", "uint16", "float32"]

# How many pictures of a set are looked at to learn what kind of pixels it holds.
_PROBES = 8


class PictureSet(ABC):
    """One part of a data set: pictures and their labels.

    Attributes:
        labels: int64 (N,), indices into the data set's class names.
        groups: what each picture must stay together with when the set is divided (a patient), None for one that stands alone;
            or None where nothing is known of groups. Never shown to anyone: it may identify a patient.
    """

    labels: NDArray[np.int64]
    groups: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would call the picture: a path, or a position in an array."""

    @abstractmethod
    def read(self, index: int) -> NDArray[np.generic]:
        """Decode one picture.

        Returns:
            uint8, uint16 or float32 (0..1), (H, W, 3) RGB or (H, W, 1) grey.

        Raises:
            SourceError: the picture cannot be read.
        """


class ArrayPictures(PictureSet):
    """Pictures in memory.

    Args:
        images: uint8 or uint16 (N, H, W) grey or (N, H, W, 3) RGB.
        labels: integers (N,).
        origin: what to call the array in messages.
    """

    def __init__(self, images: NDArray[np.generic], labels: NDArray[np.int64], origin: str) -> None:
        self.images = images
        self.labels = labels
        self.origin = origin

    def name(self, index: int) -> str:
        return f"{self.origin}[{index}]"

    def read(self, index: int) -> NDArray[np.generic]:
        picture: NDArray[np.generic] = self.images[index]
        return picture if picture.ndim == 3 else picture[..., None]


@dataclass(frozen=True)
class Sample:
    """One labelled picture in a file; ``frame`` counts from 0 in a file of several frames, ``group`` is its patient."""

    path: Path
    label: int
    frame: int = 0
    group: str | None = None


class FilePictures(PictureSet):
    """Pictures in files, read through the runtime's one decode path, so that training sees the device's pixels."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        self.labels = np.array([sample.label for sample in self.samples], np.int64)
        if any(sample.group is not None for sample in self.samples):
            self.groups = tuple(sample.group for sample in self.samples)

    def name(self, index: int) -> str:
        sample = self.samples[index]
        return f"{sample.path} frame {sample.frame}" if sample.frame else str(sample.path)

    def read(self, index: int) -> NDArray[np.generic]:
        sample = self.samples[index]
        if not looks_like_dicom(sample.path):
            if sample.frame:
                raise SourceError(f"{sample.path} is an image and has no frame {sample.frame}")
            return read_image(sample.path)
        with DicomImage(sample.path) as image:
            if sample.frame >= len(image):
                raise SourceError(f"{sample.path} has {len(image)} frames and no frame {sample.frame}")
            return image.frame(sample.frame)


class PickedPictures(PictureSet):
    """Some pictures of a set, in an order of their own. They keep their names, and nothing is copied.

    Args:
        pictures: the set.
        indices: integers (M,) into it.
    """

    def __init__(self, pictures: PictureSet, indices: NDArray[np.intp]) -> None:
        self.pictures = pictures
        self.indices = indices
        self.labels = pictures.labels[indices]
        if pictures.groups is not None:
            self.groups = tuple(pictures.groups[index] for index in indices)

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.indices[index]))

    def read(self, index: int) -> NDArray[np.generic]:
        return self.pictures.read(int(self.indices[index]))


class JoinedPictures(PictureSet):
    """Sets one after the other."""

    def __init__(self, sets: Sequence[PictureSet]) -> None:
        self.sets = tuple(sets)
        self.labels = np.concatenate([pictures.labels for pictures in sets])
        self._starts = np.cumsum([0, *map(len, sets)])
        if any(pictures.groups is not None for pictures in sets):
            self.groups = tuple(group for pictures in sets for group in (pictures.groups or (None,) * len(pictures)))

    def name(self, index: int) -> str:
        pictures, inner = self._find(index)
        return pictures.name(inner)

    def read(self, index: int) -> NDArray[np.generic]:
        pictures, inner = self._find(index)
        return pictures.read(inner)

    def _find(self, index: int) -> tuple[PictureSet, int]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[place], index - int(self._starts[place])


def pixel_type(pictures: PictureSet) -> PixelType:
    """The kind of pixels that loses nothing of a set: the deepest found in a few pictures spread over it.

    Raises:
        DataError: none of them can be read, or their pixels are of a kind that models cannot take.
    """
    found = set()
    last_error: SourceError | None = None
    for index in np.unique(np.linspace(0, len(pictures) - 1, _PROBES).round().astype(int)):
        try:
            found.add(str(pictures.read(int(index)).dtype))
        except SourceError as error:
            last_error = error
    if not found and last_error is not None:
        raise DataError(f"none of the pictures that were tried can be read; the last: {last_error}")
    if unknown := found - set(FULL_SCALE):
        raise DataError(f"pixels are {', '.join(sorted(unknown))}; {', '.join(FULL_SCALE)} can be used")
    if "float32" in found:
        return "float32"
    return "uint16" if "uint16" in found else "uint8"
