"""The order of a study's files: series after series, each in the order of its slices, whatever the files are called.

* Studies come in the natural order of their first file's path.
* Within a study, series by Series Number, then by their first file's path.
* Within a series, slices by their place along the slice normal (Image Position (Patient) projected on it), ascending. Where a
  place occurs several times (phases, echoes, b-values) the series holds several volumes, which come one after the other:
  the first instance at each place, by Temporal Position Identifier and Instance Number, then the second, and so on. Slices of
  another orientation (localizers) make up a group of their own.
* Files without a place come after those with one, by Instance Number, then by path. A series of more than 64 orientations
  (a rotating view) is no stack of slices: all of its files come by Instance Number.

A file of several frames is one item of this order; its frames keep their order in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgemamba.runtime.dicom_files import BoundedFile, parse_elements
from edgemamba.runtime.dicom_geometry import orientation, slice_position

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Slice", "in_slice_order", "in_study_order", "read_slice"]

_ELEMENTS = (
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "StudyInstanceUID",
    "TemporalPositionIdentifier",
)
_LAST = 1 << 40
# Positions that differ by less are the same place: scanners write them with rounding.
_SAME_PLACE = 0.01  # mm
_SAME_DIRECTION = 1e-2
_MOST_ORIENTATIONS = 64

K = TypeVar("K")


@dataclass(frozen=True)
class Slice:
    """What decides about a file's place in the order; all but the path are for comparison only."""

    path: Path
    study: str
    series: str
    series_number: int
    modality: str
    plane: tuple[float, ...] | None
    position: float | None
    temporal: int
    instance: int


def read_slice(path: Path) -> Slice:
    """Read a file's place; of one that cannot be parsed, only its path is known."""
    try:
        with BoundedFile(path) as file:
            dataset = parse_elements(file, _ELEMENTS)
            return _slice(path, dataset)
    except Exception:  # its reader says what is wrong with it
        return _alone(path)


def _alone(path: Path) -> Slice:
    """A file that belongs to no study."""
    return Slice(path, f"?{path}", "", _LAST, "", None, None, _LAST, _LAST)


def _slice(path: Path, dataset: Dataset) -> Slice:
    return Slice(
        path,
        str(dataset.get("StudyInstanceUID") or ""),
        str(dataset.get("SeriesInstanceUID") or ""),
        _integer(dataset, "SeriesNumber"),
        str(dataset.get("Modality") or ""),
        orientation(dataset),
        slice_position(dataset),
        _integer(dataset, "TemporalPositionIdentifier"),
        _integer(dataset, "InstanceNumber"),
    )


def in_study_order(paths: Sequence[Path], is_dicom: Callable[[Path], bool]) -> list[Path]:
    """Files in natural order of their paths, of which those that are DICOM are put into the order that this module states.

    A study stands where its first file stood; other files keep their places.
    """
    dicom = {path for path in paths if is_dicom(path)}
    if len(dicom) < 2:
        return list(paths)
    return [
        item.path for item in in_slice_order([read_slice(path) if path in dicom else _alone(path) for path in paths])
    ]


def in_slice_order(slices: Sequence[Slice]) -> list[Slice]:
    """The slices, given in natural order of their paths, in the order that this module states."""
    ordered = []
    for study in _grouped(slices, [item.study for item in slices]):
        series = _grouped(study, [(item.series_number, item.series) for item in study])
        for members in sorted(series, key=lambda group: group[0].series_number):  # stable: first files' order
            ordered += _series_order(members)
    return ordered


def _series_order(members: Sequence[Slice]) -> list[Slice]:
    by_instance = sorted(members, key=lambda item: item.instance)
    ordered: list[Slice] = []
    groups = _planes(item for item in by_instance if item.position is not None)
    if groups is None:
        return by_instance
    for group in groups:
        places = _places(group)
        for volume in range(max(map(len, places))):
            ordered += [place[volume] for place in places if volume < len(place)]
    return ordered + [item for item in by_instance if item.position is None]


def _places(group: Sequence[Slice]) -> list[list[Slice]]:
    """The slices at each place, ascending along the normal; those of one place by time, then by number."""
    places: list[list[Slice]] = []
    begin = float("-inf")
    for item in sorted(group, key=_position):
        if _position(item) - begin > _SAME_PLACE:
            begin = _position(item)
            places.append([])
        places[-1].append(item)
    return [sorted(place, key=lambda item: (item.temporal, item.instance)) for place in places]


def _position(item: Slice) -> float:
    assert item.position is not None
    return item.position


def _planes(slices: Iterable[Slice]) -> list[list[Slice]] | None:
    """Slices of one orientation together; oblique stacks' cosines differ in their last digits. None: too many orientations."""
    groups: list[list[Slice]] = []
    for item in slices:
        for group in groups:
            pairs = zip(group[0].plane or (), item.plane or (), strict=True)
            if all(abs(a - b) <= _SAME_DIRECTION for a, b in pairs):
                group.append(item)
                break
        else:
            groups.append([item])
            if len(groups) > _MOST_ORIENTATIONS:
                return None
    return groups


def _grouped(slices: Sequence[Slice], keys: Sequence[K]) -> list[list[Slice]]:
    """Those of one key together, in the order in which the keys first occur."""
    groups: dict[K, list[Slice]] = {}
    for item, key in zip(slices, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def _integer(dataset: Dataset, keyword: str) -> int:
    value: Any = dataset.get(keyword)
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return _LAST
