"""Volumes and where they lie in the patient: axes, orientation, resampling.

Space is DICOM's (LPS: millimetres to the patient's left, back and head; PS3.3 C.7.6.2.1.1), whatever the file was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require

__all__ = ["MOST_VOXELS", "Grid", "Turn", "linear_places", "resize", "resized_shape"]

#: Of one modality; 2 GiB of float32. A larger volume is a broken or hostile header, or needs to be cropped.
MOST_VOXELS = 1 << 29
# Of x, y and z in LPS: the letters for towards less and towards more.
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
_SAME_PLACE = 0.02  # mm; scanners write positions with rounding
# Cosine of the largest angle between two axes that still counts as a right angle (0.6 degrees away from it).
_SQUARE = 0.01

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class Grid:
    """Voxels in space.

    Attributes:
        shape: along the three axes of an array.
        affine: float64 (4, 4): an array's three indices and 1 -> the voxel's centre in LPS mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def steps(self) -> tuple[float, float, float]:
        """Distance of neighbours along each axis, in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> str:
        """Where each axis points to, in three letters: ``LPS`` for columns, rows and slices of a plain axial CT."""
        return "".join(letters[towards] for letters, towards in _towards(self.affine))

    def check(self, name: str) -> None:
        """Refuse what is no volume.

        Raises:
            SourceError: it is flat, too large, lies nowhere, or its axes are not at right angles.
        """
        size = " x ".join(map(str, self.shape))
        if min(self.shape) < 2:
            raise SourceError(f"{name}: {size} voxels are one slice, no volume")
        if math.prod(self.shape) > MOST_VOXELS:
            raise SourceError(f"{name}: {size} voxels are more than {MOST_VOXELS}, the limit for one volume")
        steps = np.asarray(self.steps)
        if not np.isfinite(self.affine).all() or not ((steps > 1e-4) & (steps < 1e4)).all():
            raise SourceError(f"{name}: its voxels' place or size in the patient makes no sense")
        cosines = np.abs(self.affine[:3, :3].T @ self.affine[:3, :3] / np.outer(steps, steps) - np.eye(3)).max()
        if cosines > _SQUARE:
            angle = math.degrees(math.asin(min(1.0, float(cosines))))
            raise SourceError(
                f"{name}: its axes are tilted against each other by {angle:.1f} degrees (a tilted gantry?); "
                "resample it to a straight grid first"
            )

    def same_as(self, other: Grid) -> bool:
        """Whether both have their voxels at the same places, to a fiftieth of a millimetre, at every corner."""
        if self.shape != other.shape:
            return False
        corners = np.array([(*corner, 1.0) for corner in itertools.product(*((0, side - 1) for side in self.shape))])
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= _SAME_PLACE)

    def resized(self, shape: tuple[int, int, int]) -> Grid:
        """The grid of other voxels that cover the same space."""
        scale = np.array(self.shape) / np.array(shape)
        change = np.eye(4)
        change[:3, :3] = np.diag(scale)
        change[:3, 3] = (scale - 1) / 2
        return Grid(shape, self.affine @ change)


@dataclass(frozen=True)
class Turn:
    """A change of the axes' order and direction, and its way back.

    Attributes:
        axes: of the turned array: which axis of the other one each of them is.
        flips: which of the turned array's axes run the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to(cls, grid: Grid, orientation: str) -> Turn:
        """The turn after which the axes of ``grid`` point to ``orientation``."""
        found = grid.orientation
        axes, flips = [], []
        for letter in orientation:
            pair = next(set(letters) for letters in _LETTERS if letter in letters)
            axis = next(i for i, own in enumerate(found) if own in pair)
            axes.append(axis)
            flips.append(found[axis] != letter)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def onto(cls, grid: Grid, target: Grid) -> Turn | None:
        """The turn after which the voxels of ``grid`` lie, index by index, where those of ``target`` do; None without one.

        The same scan has other axes as DICOM than as NIfTI, and other directions after other converters.
        """
        turn = cls.to(grid, target.orientation)
        return turn if turn.grid(grid).same_as(target) else None

    def apply(self, values: NDArray[S]) -> NDArray[S]:
        """Turn the last three axes; a view."""
        lead = values.ndim - 3
        turned = values.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.flip(turned, tuple(lead + i for i, flip in enumerate(self.flips) if flip))

    def undo(self, values: NDArray[S]) -> NDArray[S]:
        """The way back, of three axes; a view."""
        turned = np.flip(values, tuple(i for i, flip in enumerate(self.flips) if flip))
        return turned.transpose(*np.argsort(self.axes))

    def grid(self, grid: Grid) -> Grid:
        """The grid of the turned array."""
        shape = tuple(grid.shape[axis] for axis in self.axes)
        change = np.zeros((4, 4))
        change[3, 3] = 1
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            change[old, new] = -1 if flip else 1
            change[old, 3] = grid.shape[old] - 1 if flip else 0
        return Grid((shape[0], shape[1], shape[2]), grid.affine @ change)


def _towards(affine: NDArray[np.float64]) -> list[tuple[tuple[str, str], int]]:
    """For each axis of the array the letters of the world's axis that it runs along, and which of the two it runs to."""
    directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(directions[world, axis]) for axis, world in enumerate(order)),
    )
    return [(_LETTERS[world], int(directions[world, axis] > 0)) for axis, world in enumerate(best)]


def resized_shape(grid: Grid, spacing: Sequence[float] | None, name: str) -> tuple[int, int, int]:
    """How many voxels of about ``spacing`` mm cover the grid's space; those it has where no spacing is asked for.

    Raises:
        SourceError: too many.
    """
    if spacing is None:
        return grid.shape
    sides = [
        max(1, round(side * step / wanted)) for side, step, wanted in zip(grid.shape, grid.steps, spacing, strict=True)
    ]
    if math.prod(sides) > MOST_VOXELS:
        raise SourceError(
            f"{name}: at the model's spacing it has {' x '.join(map(str, sides))} voxels, more than {MOST_VOXELS}"
        )
    return sides[0], sides[1], sides[2]


def linear_places(length: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of ``wanted`` voxels along the space of ``length``: its two neighbours there, and the second one's weight."""
    places = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    low = np.floor(places).astype(np.intp)
    return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)


def resize(values: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Linear interpolation to other voxels that cover the same space (outer edges meet, as of pictures; no antialiasing).

    Args:
        values: float32 (D, H, W).
        shape: wanted.

    Returns:
        float32 of ``shape``.
    """
    if values.shape == shape:
        return values
    cv2 = require("cv2", purpose="resampling volumes")
    depth, height, width = shape
    out = np.empty(shape, np.float32)
    planes: dict[int, NDArray[np.float32]] = {}
    for index, (low, high, weight) in enumerate(zip(*linear_places(values.shape[0], depth), strict=True)):
        for needed in (int(low), int(high)):
            if needed not in planes:
                plane = np.ascontiguousarray(values[needed], np.float32)
                planes[needed] = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        planes = {key: plane for key, plane in planes.items() if key >= low}
        out[index] = planes[int(low)] * (1 - weight) + planes[int(high)] * weight
    return out
