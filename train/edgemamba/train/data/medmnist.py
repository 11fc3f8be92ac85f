"""Data sets in one ``.npz`` file, in the layout of MedMNIST v2 (Yang et al., Scientific Data 10:41, 2023)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.dataset import PARTS, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.pictures import ArrayPictures


def open_npz(path: Path, division: Division = Division()) -> ImageDataset:
    """Open ``train_images``, ``train_labels``, ``val_images``, ``val_labels`` and optionally ``test_images``, ``test_labels``.

    Images are uint8 or uint16 (N, H, W) or (N, H, W, 3) of any size; labels are integers (N,) or (N, 1). An array
    ``class_names`` of strings names the classes; without it they are called by their numbers, as MedMNIST's files carry
    no names.

    Raises:
        DataError: the file is no such archive, an array has another shape or type, or a label is out of range.
    """
    arrays = _read(path)
    if "train_images" not in arrays:
        raise DataError(f"{path} has no array train_images; it has: {', '.join(sorted(arrays)) or 'nothing'}")
    names = _class_names(path, arrays)
    found: dict[Part, ArrayPictures] = {}
    for part in PARTS:
        if f"{part}_images" in arrays:
            found[part] = _part(path, arrays, part, None if names is None else len(names))
    classes = int(found["train"].labels.max(initial=-1)) + 1 if names is None else len(names)
    for part, pictures in found.items():
        if (highest := int(pictures.labels.max(initial=-1))) >= classes:
            raise DataError(f"{path}: {part}_labels has label {highest} and the classes are 0 to {classes - 1}")
    parts = division.apply(found, origin=str(path), has_parts=True)
    return ImageDataset(str(path), names or tuple(map(str, range(classes))), parts)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of the archive; nothing pickled is read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array; the layout of MedMNIST is needed")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from None


def _class_names(path: Path, arrays: dict[str, NDArray[Any]]) -> tuple[str, ...] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: class_names is {names.dtype} {names.shape}; a list of strings is needed")
    return tuple(map(str, names))


def _part(path: Path, arrays: dict[str, NDArray[Any]], part: Part, classes: int | None) -> ArrayPictures:
    images = arrays[f"{part}_images"]
    labels = arrays.get(f"{part}_labels")
    if labels is None:
        raise DataError(f"{path} has {part}_images and no {part}_labels")
    if images.dtype not in (np.uint8, np.uint16) or not (
        images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    ):
        raise DataError(
            f"{path}: {part}_images is {images.dtype} {images.shape}; uint8 or uint16 (N, H, W) or (N, H, W, 3) is needed"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{path}: {part}_labels is {labels.shape}: a picture has several labels, and this is one-label classification"
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iub" or len(labels) != len(images):
        raise DataError(f"{path}: {part}_labels is {labels.dtype} of {len(labels)} for {len(images)} images")
    labels = labels.astype(np.int64)
    if len(labels) and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        bad = int(labels.min()) if labels.min() < 0 else int(labels.max())
        limit = "from 0 on" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{path}: {part}_labels has label {bad} and the classes are {limit}")
    return ArrayPictures(images, labels, f"{path.name}:{part}")
