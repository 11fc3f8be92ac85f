"""Data sets that are folder trees: one folder a class, with or without a folder a part above them."""

from __future__ import annotations

from pathlib import Path

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.sources.pictures import pictures_in
from edgemamba.train.data.dataset import PART_OF, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.pictures import FilePictures, Sample


def open_folder(root: Path, division: Division = Division()) -> ImageDataset:
    """Open ``root/train/<class>/*.png`` with ``root/val/...`` and optionally ``root/test/...``, or ``root/<class>/*.png``.

    Classes are numbered in the order of their names. Pictures may lie deeper inside a class's folder; DICOM files
    need no suffix. Hidden files and files that are no pictures are passed over.

    Raises:
        DataError: a class has no picture, a part has a class that the training part lacks, there is no validation part, or
            only one class.
    """
    folders = _folders(root)
    parts: dict[Part, Path] = {}
    for folder in folders:
        if part := PART_OF.get(folder.name.lower()):
            if part in parts:
                raise DataError(f"{root} has two {part} parts: {parts[part].name} and {folder.name}")
            parts[part] = folder
    if "train" not in parts:
        if parts:
            raise DataError(f"{root} has {', '.join(p.name for p in parts.values())} and no train folder")
        parts = {"train": root}

    class_names = tuple(folder.name for folder in _folders(parts["train"]))
    if not class_names:
        raise DataError(f"{root} is no data set: there is no folder of a class in {parts['train']}")
    samples = {part: _samples(folder, class_names) for part, folder in parts.items()}
    pictures = {part: FilePictures(found) for part, found in samples.items()}
    divided = division.apply(pictures, origin=str(root), has_parts=parts["train"] != root)
    return ImageDataset(str(root), class_names, divided)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _samples(folder: Path, class_names: tuple[str, ...]) -> list[Sample]:
    """Every picture below ``folder``, class by class, in natural order."""
    samples = []
    for class_folder in _folders(folder):
        if class_folder.name not in class_names:
            raise DataError(f"{class_folder} is a class that the training part does not have")
        paths, _ = pictures_in(class_folder)
        if not paths:
            raise DataError(f"{class_folder} has no picture in it; remove the folder, or put pictures there")
        samples += [Sample(path, class_names.index(class_folder.name)) for path in paths]
    return samples
