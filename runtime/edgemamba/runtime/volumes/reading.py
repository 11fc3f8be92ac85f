"""What a segmentation starts from: one volume for each modality, all on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.uris import parse_source
from edgemamba.runtime.volumes.grids import Grid, Turn
from edgemamba.runtime.volumes.nifti import NiftiForms, NiftiVolumes, is_nifti, read_nifti
from edgemamba.runtime.volumes.series import Plane, Series, read_series

__all__ = ["Study", "read_volumes"]


@dataclass(frozen=True)
class Study:
    """The modalities of one patient at one time.

    Attributes:
        name: the first source, as it was given.
        grid: of every channel.
        channels: float32, one for each modality, in the model's order.
        planes: of the first modality's slices, where it is DICOM: what a DICOM SEG refers to.
        forms: what a NIfTI file says of its place; of DICOM the scanner's space.
    """

    name: str
    grid: Grid
    channels: tuple[NDArray[np.float32], ...]
    planes: tuple[Plane, ...] = ()
    forms: NiftiForms = field(default_factory=NiftiForms)


def read_volumes(sources: Sequence[str], modalities: Sequence[str]) -> Study:
    """Read the modalities of a study.

    Args:
        sources: one for each modality, in the model's order, or in any as ``MODALITY=SOURCE``; a NIfTI file with all of them
            along its fourth axis is enough alone.
        modalities: the model's.

    Raises:
        SourceError: one cannot be read, is missing or one too many, or lies on another grid than the first.
        MissingExtraError: pydicom or nibabel is not installed.
    """
    texts = _by_modality(sources, modalities)
    volumes: list[Series | NiftiVolumes] = []
    for text in texts:
        path = _nifti_path(text)
        volumes.append(read_nifti(path, len(modalities)) if path is not None else read_series(text))
    first = volumes[0]
    channels = list(_channels(first))
    for text, volume in zip(texts[1:], volumes[1:], strict=True):
        turn = _onto(texts[0], first, text, volume)
        channels += [turn.apply(channel) for channel in _channels(volume)]
    if len(channels) != len(modalities):
        raise SourceError(
            f"{len(channels)} {'volume is' if len(channels) == 1 else 'volumes are'} given; the model takes "
            f"{len(modalities)}: name one --source for each of {', '.join(modalities)}"
        )
    planes = first.planes if isinstance(first, Series) else ()
    forms = first.forms if isinstance(first, NiftiVolumes) else NiftiForms()
    return Study(texts[0], first.grid, tuple(channels), planes, forms)


def _by_modality(sources: Sequence[str], modalities: Sequence[str]) -> list[str]:
    named = {name: text for name, equals, text in (source.partition("=") for source in sources) if equals}
    if not named or not set(named) & set(modalities):  # a path may hold a "="
        return list(sources)
    if len(named) != len(sources) or set(named) != set(modalities):
        raise SourceError(f"name every modality once, as MODALITY=SOURCE: {', '.join(modalities)}")
    return [named[name] for name in modalities]


def _nifti_path(text: str) -> Path | None:
    uri = parse_source(text)
    path = Path(uri.location).expanduser()
    if uri.scheme != "file" or not is_nifti(path):
        return None
    if not path.is_file():
        raise SourceError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    return path


def _channels(volume: Series | NiftiVolumes) -> tuple[NDArray[np.float32], ...]:
    return volume.channels if isinstance(volume, NiftiVolumes) else (volume.values,)


def _onto(first_name: str, first: Series | NiftiVolumes, name: str, volume: Series | NiftiVolumes) -> Turn:
    """How its axes become the first one's: voxels lie at the same places, in one frame of reference; nothing is registered."""
    if isinstance(first, Series) and isinstance(volume, Series):
        frames = [series.planes[0].header.get("FrameOfReferenceUID") for series in (first, volume)]
        if frames[0] != frames[1]:
            raise SourceError(f"{name}: its frame of reference is not that of {first_name}; register it first")
    turn = Turn.onto(volume.grid, first.grid)
    if turn is None:
        raise SourceError(
            f"{name}: its voxels ({_size(volume.grid)}) do not lie where those of {first_name} ({_size(first.grid)}) do; "
            "resample it to that grid first"
        )
    return turn


def _size(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape)) + " of " + " x ".join(f"{step:.3g}" for step in grid.steps) + " mm"
