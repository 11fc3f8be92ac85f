"""A CT, MR or PET series as one volume: slices by position, or the frames of an enhanced multi-frame file.

What is no stack of parallel slices at equal distances is refused, with the reason: a mask on a wrong grid looks right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.dicom_geometry import geometry, numbers, orientation
from edgemamba.runtime.dicom_grayscale import functional_group
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources.files import open_dicom
from edgemamba.runtime.sources.pictures import looks_like_dicom
from edgemamba.runtime.uris import parse_source
from edgemamba.runtime.volumes.grids import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Plane", "Series", "read_series"]

# Slices closer than this lie at the same place; distances may differ by that much, or by a fiftieth.
_SAME_PLACE = 0.01  # mm
_UNEVEN = 0.02
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True)
class Plane:
    """One slice: where it is stored, and where it lies.

    Attributes:
        path, frame: the file, and the frame in it from 0.
        header: the instance's elements; may identify a patient, and goes nowhere but into DICOM objects.
        position: of the centre of its first voxel, LPS mm.
        cosines: directions of a row and of a column.
        spacing: mm between rows, between columns.
    """

    path: Path
    frame: int
    header: Dataset
    position: tuple[float, ...]
    cosines: tuple[float, ...]
    spacing: tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A volume, float32 (slices, rows, columns) in the modality's units, and its slices in that order."""

    values: NDArray[np.float32]
    grid: Grid
    planes: tuple[Plane, ...]


def read_series(text: str) -> Series:
    """Read a series: a folder, an enhanced multi-frame file, a DICOMDIR, or ``dicom://PATH?series=NUMBER``.

    Raises:
        SourceError: nothing is there, several series are, or they are no volume; the line says which.
    """
    planes = _in_order(_planes(text), text)
    first = planes[0]
    rows, columns = int(first.header.Rows), int(first.header.Columns)
    affine = np.eye(4)
    step = (np.array(planes[-1].position) - np.array(first.position)) / (len(planes) - 1)
    affine[:3, 0] = step
    affine[:3, 1] = np.array(first.cosines[3:]) * first.spacing[0]
    affine[:3, 2] = np.array(first.cosines[:3]) * first.spacing[1]
    affine[:3, 3] = first.position
    grid = Grid((len(planes), rows, columns), affine)
    grid.check(text)
    values = np.empty(grid.shape, np.float32)
    opened: _Values | None = None
    try:
        for index, plane in enumerate(planes):
            if opened is None or opened.path != plane.path:
                if opened is not None:
                    opened.close()
                opened = _Values(plane.path)
            values[index] = opened.values(plane.frame)
    finally:
        if opened is not None:
            opened.close()
    if not np.isfinite(values).all():
        raise SourceError(f"{text}: some of its values are not finite (NaN or infinite)")
    return Series(values, grid, tuple(planes))


class _Values(DicomImage):
    """The frames of a file in the modality's units, through the one decode path; before any window."""

    def values(self, index: int) -> NDArray[np.float32]:
        """float32 (rows, columns).

        Raises:
            SourceError: it cannot be decoded, or is a colour picture.
        """
        try:
            stored, photometric = self._decode(index)
            if not photometric.startswith("MONOCHROME"):
                raise SourceError(f"(0028,0004) Photometric Interpretation {photometric} is no volume of grey values")
            return self._grayscale(index).modality(stored.astype(np.float64)).astype(np.float32)
        except SourceError as error:
            raise SourceError(f"{self.path}: {error}") from None
        except Exception as error:
            raise SourceError(f"{self.path} frame {index + 1} cannot be decoded ({type(error).__name__})") from None


def _planes(text: str) -> list[Plane]:
    """Every slice of the one series that is there."""
    uri = parse_source(text)
    if uri.scheme not in ("file", "dicom"):
        raise SourceError(
            f"{uri.shown}: models of volumes segment a CT or MR series or NIfTI, no {uri.scheme}:// stream"
        )
    path = Path(uri.location).expanduser()
    if path.is_file() and not (looks_like_dicom(path) or path.name.upper() == "DICOMDIR"):
        raise SourceError(f"{path} is neither DICOM nor NIfTI; models of volumes segment a CT or MR series or NIfTI")
    with open_dicom(replace(uri, scheme="dicom"), "auto") as source:
        files = source.files
    planes: list[Plane] = []
    series: dict[str, str] = {}
    for file in files:
        with DicomImage(file) as image:
            header = image.header
            series[str(header.get("SeriesInstanceUID"))] = str(header.get("SeriesNumber", "?"))
            if len(series) > 1:
                listed = ", ".join(series.values())
                raise SourceError(
                    f"{text} holds several series (numbers {listed}, ...); choose one as dicom://{uri.location}?series=NUMBER"
                )
            planes += [_plane(file, header, frame) for frame in range(len(image))]
    return planes


def _plane(path: Path, header: Dataset, frame: int) -> Plane:
    cosines = orientation(header, frame)
    position = numbers(functional_group(header, frame, "PlanePositionSequence").get("ImagePositionPatient"), 3)
    spacing: Any = geometry(header, frame).get("pixel_spacing")
    for found, name in (
        (position, "Image Position (Patient) (0020,0032)"),
        (cosines, "Image Orientation (Patient) (0020,0037)"),
        (spacing, "Pixel Spacing (0028,0030)"),
    ):
        if found is None:
            raise SourceError(f"{path}: it has no usable {name}, so it is no slice of a volume")
    assert position is not None
    assert cosines is not None
    return Plane(path, frame, header, position, cosines, (spacing[0], spacing[1]))


def _in_order(planes: list[Plane], text: str) -> list[Plane]:
    """Along the normal, where all of them are one stack at equal distances."""
    if len(planes) < 2:
        raise SourceError(f"{text} is one slice, no volume")
    first = planes[0]
    for plane in planes:
        if np.abs(np.subtract(plane.cosines, first.cosines)).max() > _SAME_DIRECTION:
            raise SourceError(
                f"{text}: its slices have several orientations ({first.path.name} and {plane.path.name}, a localizer?)"
            )
        if np.abs(np.subtract(plane.spacing, first.spacing)).max() > _SAME_DIRECTION * max(first.spacing):
            raise SourceError(
                f"{text}: its slices have several pixel spacings: {first.spacing} and {plane.spacing} mm "
                f"({plane.path.name})"
            )
        if (plane.header.Rows, plane.header.Columns) != (first.header.Rows, first.header.Columns):
            raise SourceError(f"{text}: its slices have several sizes ({first.path.name} and {plane.path.name})")
        if plane.header.get("FrameOfReferenceUID") != first.header.get("FrameOfReferenceUID"):
            raise SourceError(f"{text}: its slices have several frames of reference ({plane.path.name})")
    row, column = np.array(first.cosines[:3]), np.array(first.cosines[3:])
    normal = np.cross(row, column)
    if not 0.99 < np.linalg.norm(normal) < 1.01:
        raise SourceError(f"{text}: (0020,0037) Image Orientation (Patient) spans no plane")
    ordered = sorted(planes, key=lambda plane: float(np.dot(normal, plane.position)))
    _check_distances(ordered, normal, text)
    return ordered


def _check_distances(planes: list[Plane], normal: NDArray[np.float64], text: str) -> None:
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    distances = np.diff(along)
    usual = float(np.median(distances))
    closest = int(distances.argmin())
    if distances[closest] < _SAME_PLACE:
        raise SourceError(
            f"{text}: two slices lie at the same place, {along[closest]:.2f} mm ({planes[closest].path.name} and "
            f"{planes[closest + 1].path.name}): several phases, echoes or copies; choose one of them"
        )
    uneven = np.abs(distances - usual)
    worst = int(uneven.argmax())
    if uneven[worst] > max(_SAME_PLACE, _UNEVEN * usual):
        missing = distances[worst] / usual
        what = "a slice is missing" if abs(missing - round(missing)) < 0.1 and missing > 1.5 else "distances vary"
        raise SourceError(
            f"{text}: {what}: {distances[worst]:.2f} mm between {planes[worst].path.name} and "
            f"{planes[worst + 1].path.name}, {usual:.2f} mm elsewhere"
        )
    straight = positions[0] + np.outer(along - along[0], normal)
    aside = float(np.linalg.norm(positions - straight, axis=1).max())
    if aside > max(_SAME_PLACE, 0.01 * abs(along[-1] - along[0])):
        raise SourceError(
            f"{text}: its slices are not above each other; they shift by {aside:.2f} mm (a tilted gantry?); resample it to a "
            "straight grid first"
        )
