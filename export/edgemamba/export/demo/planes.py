"""The data of the demo: slices of the MNI152 T1 template, cut into blocks so that training and test are kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.extras import require
from edgemamba.train.data import Part

PLANES = ("axial", "coronal", "sagittal")
# Axis of the volume (left to right, back to front, bottom to top) that each plane is cut across.
_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}

SIDE = 160
"""Height and width of the pictures, in pixels."""
FULL_SCALE = 4095
"""Their largest value: 12 bits, as scanners store them."""

# Slices are 1 mm apart. Neighbours look nearly the same, so blocks of them go to one part, and the slices between two
# blocks to none.
_BLOCK = 6
_GAP = 5
_PARTS: tuple[Part, ...] = ("train", "test", "train", "val")
# A slice with less brain than this share of the largest of its plane says little.
_LEAST_BRAIN = 0.25


@dataclass(frozen=True)
class Slice:
    """One slice of the volume: its plane, and its position along the plane's axis in mm (MNI space)."""

    plane: str
    position: float


@dataclass(frozen=True)
class Pictures:
    """Pictures of one part: uint16 (N, SIDE, SIDE) of 12 bits, their labels (N,), and the slice each was made from."""

    images: NDArray[np.uint16]
    labels: NDArray[np.int64]
    slices: tuple[Slice, ...]


def load_volume() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The skull-stripped ICBM152 2009 T1 template that nilearn's wheel carries; nothing is downloaded.

    Returns:
        float32 (197, 233, 189) of 0..1, axes left to right, back to front, bottom to top; and the MNI coordinate in mm of
        the first voxel along each axis. Voxels are 1 mm.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    datasets = require("nilearn.datasets", purpose="the demo's brain volume")
    image = require("nibabel").as_closest_canonical(datasets.load_mni152_template(resolution=1))
    volume = image.get_fdata(dtype=np.float32)
    return volume, image.affine[:3, 3]


def make_pictures(per_class: dict[Part, int | None], seed: int) -> dict[Part, Pictures]:
    """Cut, divide and vary the slices.

    Each picture is a slice turned by up to 20 degrees, mirrored or not, shifted, cropped to a field of view of 110 to 190 mm,
    and changed in contrast, brightness and noise, so that neither the outline of the picture nor the size of the brain gives the plane
    away. The fields of view are square for all planes.

    Args:
        per_class: how many pictures of each plane a part gets, drawn from its slices again and again; None for every
            slice once, as many from each plane as the smallest has.
        seed: of the variation.

    Raises:
        MissingExtraError: nilearn is not installed.
        DataError: nilearn carries another volume than expected.
    """
    volume, origin = load_volume()
    if volume.shape != (197, 233, 189):
        raise DataError(f"nilearn's MNI152 template is {volume.shape}, and (197, 233, 189) was expected")
    blocks = {plane: divide(_brainy(volume, plane)) for plane in PLANES}
    made: dict[Part, Pictures] = {}
    for part_number, (part, count) in enumerate(per_class.items()):
        rng = np.random.default_rng((seed, part_number))
        images, labels, slices = [], [], []
        least = min(len(blocks[plane][part]) for plane in PLANES)
        for label, plane in enumerate(PLANES):
            indices = blocks[plane][part]
            if count is None:
                chosen = [indices[i] for i in np.linspace(0, len(indices) - 1, least).round().astype(int)]
            else:
                chosen = [indices[i] for i in rng.integers(0, len(indices), count)]
            for index in chosen:
                images.append(vary(_cut(volume, plane, index), rng))
                labels.append(label)
                slices.append(Slice(plane, float(origin[_AXIS[plane]] + index)))
        made[part] = Pictures(np.stack(images), np.array(labels, np.int64), tuple(slices))
    return made


def divide(indices: list[int]) -> dict[Part, list[int]]:
    """Cut neighbouring slices into blocks that go to the parts in turn, with slices left out between them."""
    parts: dict[Part, list[int]] = {"train": [], "val": [], "test": []}
    for number, start in enumerate(range(0, len(indices), _BLOCK + _GAP)):
        parts[_PARTS[number % len(_PARTS)]] += indices[start : start + _BLOCK]
    return parts


def save_npz(path: Path, pictures: dict[Part, Pictures]) -> None:
    """Write the pictures in MedMNIST's layout, at the full scale of uint16."""
    arrays: dict[str, Any] = {"class_names": np.array(PLANES)}
    for part, found in pictures.items():
        arrays[f"{part}_images"] = to_uint16(found.images)
        arrays[f"{part}_labels"] = found.labels[:, None]
    np.savez(path, **arrays)


def to_uint16(images: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Values of 12 bits at the full scale of 16, as the runtime gives a DICOM picture whose window is all of its 12 bits."""
    return np.rint(images.astype(np.float64) * (65535 / FULL_SCALE)).astype(np.uint16)


def _brainy(volume: NDArray[np.float32], plane: str) -> list[int]:
    """Indices of the slices that show enough brain."""
    axis = _AXIS[plane]
    area = np.count_nonzero(volume, axis=tuple(other for other in range(3) if other != axis))
    indices = np.flatnonzero(area > _LEAST_BRAIN * area.max())
    if plane == "sagittal":
        # This template is exactly symmetric: the right half's slices are the left half's, mirrored. One half only,
        # or every test slice would have its twin among the training slices.
        indices = indices[indices <= volume.shape[0] // 2]
    return [int(index) for index in indices]


def _cut(volume: NDArray[np.float32], plane: str, index: int) -> NDArray[np.float32]:
    """One slice as a radiologist sees it: top of the head (or the front, in axial slices) up."""
    return np.ascontiguousarray(np.rot90(np.moveaxis(volume, _AXIS[plane], 0)[index]))


def vary(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint16]:
    """One random view of a slice: uint16 (SIDE, SIDE) of 12 bits."""
    cv2 = require("cv2", purpose="turning slices")
    rows, columns = np.nonzero(picture)
    centre = np.array([columns.mean(), rows.mean()]) + rng.uniform(-15, 15, 2)
    field_of_view = rng.uniform(110, 190)
    scale = SIDE / field_of_view
    affine = cv2.getRotationMatrix2D(centre.tolist(), rng.uniform(-20, 20), scale)
    affine[:, 2] += SIDE / 2 - centre
    view = cv2.warpAffine(picture, affine, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    view = view ** np.exp(rng.uniform(-0.4, 0.4)) * rng.uniform(0.6, 1.0)
    view = np.abs(view + rng.normal(0, rng.uniform(0, 0.03), view.shape))  # noise as in magnitude images
    return np.rint(np.clip(view, 0, 1) * FULL_SCALE).astype(np.uint16)
