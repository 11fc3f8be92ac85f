"""Training data: folder trees, MedMNIST archives, tables of DICOM files and WebDataset shards, opened by one function."""

from __future__ import annotations

from pathlib import Path

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.dataset import PARTS, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.folder import open_folder
from edgemamba.train.data.medmnist import open_npz
from edgemamba.train.data.pictures import ArrayPictures, FilePictures, PictureSet, Sample
from edgemamba.train.data.shards import open_shards, shards_of
from edgemamba.train.data.table import is_parquet, open_table

__all__ = [
    "PARTS",
    "ArrayPictures",
    "FilePictures",
    "ImageDataset",
    "Part",
    "PictureSet",
    "Sample",
    "open_dataset",
]


def open_dataset(
    path: str | Path, *, val_fraction: float | None = None, fold: tuple[int, int] | None = None, seed: int = 0
) -> ImageDataset:
    """Open a data set, recognised by what it is.

    Args:
        path: a folder tree (``train/<class>/*.png`` beside ``val/``, or ``<class>/*.png``), a MedMNIST ``.npz``, a
            ``.csv`` or ``.parquet`` with the columns ``path,label[,split][,patient][,frame]``, or WebDataset shards: a
            folder of ``.tar``, one of them, or a pattern (``train-{000..019}.tar``).
        val_fraction: share of the training pictures of each class to hold out for validation, where the data set has no
            validation part. A set without any parts is split by default (0.2); one that has a training part is only split
            when this is given.
        fold: (k, K) for cross-validation: fold k of K (k from 1) is the validation part and the others the training part,
            divided by class with patients kept together. Where the data set has a validation part of its own, it is
            joined with the training part before that; a test part stays as it is.
        seed: of either.

    Raises:
        DataError: it is none of these, or cannot be used; the message names the file or line.
    """
    division = Division(val_fraction, fold, seed)
    path = Path(path)
    if shards := shards_of(path):
        return open_shards(path, shards, division)
    if path.is_dir():
        return open_folder(path, division)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.suffix.lower() == ".npz":
        return open_npz(path, division)
    if path.suffix.lower() == ".csv" or is_parquet(path):
        return open_table(path, division)
    raise DataError(
        f"{path} is no data set that is known; a folder, shards (.tar), or a .npz, .csv or .parquet file is needed"
    )
