"""Data sets of segmentation on disk: a folder ``images`` and a folder ``masks``, whose entries have the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.runtime.sources.pictures import pictures_in
from edgemamba.runtime.volumes.nifti import NIFTI_SUFFIXES, is_nifti, nifti_channels
from edgemamba.train.data import PARTS, Part
from edgemamba.train.data.dataset import PART_OF
from edgemamba.train.data.division import DEFAULT_VAL_FRACTION
from edgemamba.train.data.split import spread

#: Of the class names, one a line in the order of their indices; beside the parts, or beside ``images``.
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Pair:
    """One picture or volume, and its mask.

    Attributes:
        name: the stem that both have.
        image: a picture, a DICOM file, a NIfTI file, or a folder: of one DICOM series, or of one NIfTI file a modality.
        mask: a picture of class indices, or a NIfTI file of them.
    """

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class PairSet:
    """What was found.

    Attributes:
        origin: the folder.
        volumes: of volumes (NIfTI masks), not of pictures.
        parts: ``train`` and ``val`` always, ``test`` where there is one.
        class_names: of ``classes.txt``, or empty.
    """

    origin: str
    volumes: bool
    parts: Mapping[Part, Sequence[Pair]]
    class_names: tuple[str, ...]


def find_pairs(root: str | Path, *, val_fraction: float | None = None, seed: int = 0) -> PairSet:
    """Find what there is in ``root/images`` and ``root/masks``, or in such folders of ``root/train``, ``val`` and ``test``.

    Args:
        root: of the data set.
        val_fraction: share of the training pairs to hold out where there is no validation part (0.2).
        seed: of that draw. It knows nothing of patients: where a patient has several pictures, divide into folders.

    Raises:
        DataError: it is no such folder, one without pairs, a picture without a mask or a mask without a picture.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is no folder; one with images/ and masks/ in it is needed")
    folders = {PART_OF[path.name.lower()]: path for path in sorted(root.iterdir()) if path.name.lower() in PART_OF}
    if folders and "train" not in folders:
        raise DataError(f"{root} has {', '.join(path.name for path in folders.values())} and no train folder")
    parts = {part: _pairs(folders[part]) for part in PARTS if part in folders} or {"train": _pairs(root)}
    if "val" not in parts:
        share = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
        if not 0 < share < 1:
            raise DataError(f"--val-fraction is {share}; it must lie between 0 and 1")
        pairs = parts["train"]
        held_out = spread([0] * len(pairs), None, share, seed)
        if not any(held_out):
            raise DataError(f"{root} has too few pairs to hold {share:.0%} out for validation; add a val folder")
        parts["val"] = [pair for pair, out in zip(pairs, held_out, strict=True) if out]
        parts["train"] = [pair for pair, out in zip(pairs, held_out, strict=True) if not out]
    kinds = {is_nifti(pair.mask) for pairs in parts.values() for pair in pairs}
    if len(kinds) > 1:
        raise DataError(f"{root} holds pictures and NIfTI volumes; one data set is of one kind")
    return PairSet(str(root), kinds.pop(), {part: parts[part] for part in PARTS if part in parts}, _class_names(root))


def sources_of(pair: Pair) -> tuple[list[str], tuple[str, ...]]:
    """What :func:`~edgemamba.runtime.volumes.reading.read_volumes` takes for a volume, and the modalities where files name
    them: a folder of NIfTI files has one for each, in the order of their names."""
    if pair.image.is_dir():
        files = sorted(path for path in pair.image.iterdir() if is_nifti(path))
        if files:
            return [str(path) for path in files], tuple(_stem(path) for path in files)
    return [str(pair.image)], ()


def channels_of(pair: Pair) -> int:
    """How many channels a volume has, by its folder or its header; DICOM series have one.

    Raises:
        DataError: the file cannot be read.
    """
    sources, _ = sources_of(pair)
    if len(sources) > 1 or not is_nifti(Path(sources[0])):
        return len(sources)
    try:
        return nifti_channels(Path(sources[0]))
    except SourceError as error:
        raise DataError(str(error)) from None


def _pairs(folder: Path) -> list[Pair]:
    """The pairs of one part, by name."""
    images, masks = (_entries(folder / name) for name in ("images", "masks"))
    for name in sorted(images.keys() | masks.keys()):
        if name not in masks:
            raise DataError(f"{images[name]} has no mask: {folder / 'masks' / name} with .png or .nii.gz is missing")
        if name not in images:
            raise DataError(f"{masks[name]} has no image: there is no {name} in {folder / 'images'}")
    return [Pair(name, images[name], masks[name]) for name in sorted(images)]


def _entries(folder: Path) -> dict[str, Path]:
    """Stem -> file, or folder of a volume."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing: a data set of segmentation has images/ and masks/ with files of the same names"
        )
    pictures = [path for path in pictures_in(folder)[0] if path.parent == folder]
    found: dict[str, Path] = {}
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in [path for path in visible if path.is_dir() or is_nifti(path)] + pictures:
        if (name := _stem(path)) in found:
            raise DataError(f"{path} and {found[name].name} have the same name; one mask cannot be of both")
        found[name] = path
    if not found:
        raise DataError(f"{folder} has no picture and no volume in it")
    return found


def _stem(path: Path) -> str:
    """The name without its suffix; NIfTI's may be double."""
    suffix = next(
        (end for end in sorted(NIFTI_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(end)), None
    )
    if suffix is not None:
        return path.name[: -len(suffix)]
    return path.name if path.is_dir() else path.stem


def _class_names(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) < 2 or len(set(names)) != len(names):
        raise DataError(f"{path} has to name two or more classes, the background first, each once, one a line")
    return names
