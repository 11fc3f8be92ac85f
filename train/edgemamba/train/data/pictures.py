"""Labelled pictures, wherever they lie: in files, or in one array."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True)
class Look:
    """A decoded picture, and what its file says about it.

    Attributes:
        pixels: as of :meth:`PictureSet.read`.
        bits: of each value as stored; DICOM's Bits Stored, which may be fewer than those of the pixels.
        patient: DICOM's Patient ID; never to be shown.
    """

    pixels: NDArray[np.generic]
    bits: int
    patient: str | None = None


class PictureSet(ABC):
    """One part of a data set: pictures and their labels.

    Attributes:
        labels: int64 (N,), indices into the data set's class names.
        groups: what each picture must stay together with when the set is divided (a patient), None for one that stands
            alone; or None where nothing is known of groups. Never shown to anyone: it may identify a patient.
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

    def look(self, index: int) -> Look:
        """Decode one picture, and say what its file says about it.

        Raises:
            SourceError: the picture cannot be read.
        """
        pixels = self.read(index)
        return Look(pixels, 8 * pixels.dtype.itemsize)

    def bulk(self, index: int) -> Hashable:
        """Something that is quickly had, and equal where what is stored of two pictures is equal: the size of a file.

        Raises:
            OSError: the picture is gone.
        """
        raise NotImplementedError

    def stamp(self, index: int) -> str | None:
        """A name of the picture's stored bytes, which changes when they do; None where decoding costs nothing.

        Raises:
            OSError: the picture is gone.
        """
        return None


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

    def bulk(self, index: int) -> Hashable:
        return zlib.crc32(self.images[index].tobytes())


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
        return read_file(self.samples[index].path, self.samples[index].frame)

    def look(self, index: int) -> Look:
        return look_at_file(self.samples[index].path, self.samples[index].frame)

    def bulk(self, index: int) -> Hashable:
        return self.samples[index].path.stat().st_size, self.samples[index].frame

    def stamp(self, index: int) -> str | None:
        sample = self.samples[index]
        stat = sample.path.stat()
        return f"{sample.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sample.frame}"


def read_file(path: Path, frame: int = 0) -> NDArray[np.generic]:
    """Decode a picture from an image or DICOM file, as :meth:`PictureSet.read` does."""
    with _opened(path, frame) as image:
        return read_image(path) if image is None else image.frame(frame)


def look_at_file(path: Path, frame: int = 0) -> Look:
    """The same for :meth:`PictureSet.look`."""
    with _opened(path, frame) as image:
        if image is None:
            pixels = read_image(path)
            return Look(pixels, 8 * pixels.dtype.itemsize)
        patient = str(image.header.get("PatientID") or "").strip() or None
        return Look(image.frame(frame), int(image.metadata(frame)["bits_stored"]), patient)


@contextmanager
def _opened(path: Path, frame: int) -> Iterator[DicomImage | None]:
    """A DICOM file that has this frame; None for an image file.

    Raises:
        SourceError: it cannot be opened, or has no such frame.
    """
    if not looks_like_dicom(path):
        if frame:
            raise SourceError(f"{path} is an image and has no frame {frame}")
        yield None
        return
    with DicomImage(path) as image:
        if frame >= len(image):
            raise SourceError(f"{path} has {len(image)} frames and no frame {frame}")
        yield image


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
