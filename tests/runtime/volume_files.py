"""Volumes for tests: one made of shapes, as DICOM series, as an enhanced multi-frame file and as NIfTI; and a bundle for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.made_dicom import grey, save

from edgemamba.runtime.bundle import MODEL, Manifest, ModelCard, TensorCard, sha256, write_manifest
from edgemamba.runtime.volumes.card import VolumeCard

pytest.importorskip("pydicom")
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)  # normal (-0.6, 0.8, 0)
STEPS = (3.0, 0.8, 1.1)  # slices, rows, columns
ORIGIN = (-20.0, -30.0, 5.0)
CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
LABELS = ("background", "ball", "box")


def shapes(size: Sequence[int] = (10, 24, 20)) -> NDArray[np.int16]:
    """A bright ball and a brighter box, at no symmetric place, on noise: (slices, rows, columns)."""
    z, y, x = np.meshgrid(*(np.arange(side) for side in size), indexing="ij")
    values = np.random.default_rng(0).integers(-20, 20, size)
    ball = (
        ((z - 0.6 * size[0]) / size[0]) ** 2
        + ((y - 0.3 * size[1]) / size[1]) ** 2
        + ((x - 0.35 * size[2]) / size[2]) ** 2
    )
    values[ball < 0.04] += 400
    values[: size[0] // 3, -size[1] // 3 :, -size[2] // 4 :] += 800
    return values.astype(np.int16)


def normal_of(cosines: Sequence[float]) -> NDArray[np.float64]:
    return np.cross(cosines[:3], cosines[3:])


def affine_of(cosines: Sequence[float] = AXIAL, steps: Sequence[float] = STEPS) -> NDArray[np.float64]:
    """(slice, row, column, 1) -> LPS mm."""
    affine = np.eye(4)
    affine[:3, 0] = normal_of(cosines) * steps[0]
    affine[:3, 1] = np.array(cosines[3:]) * steps[1]
    affine[:3, 2] = np.array(cosines[:3]) * steps[2]
    affine[:3, 3] = ORIGIN
    return affine


def write_series(
    folder: Path,
    values: NDArray[np.int16],
    *,
    cosines: Sequence[float] = AXIAL,
    steps: Sequence[float] = STEPS,
    frame: str = "1.2.826.0.1.3680043.8.498.50",
    series: str = "1.2.826.0.1.3680043.8.498.51",
    modality: str = "CT",
    **elements: Any,
) -> list[Path]:
    """One file a slice, named and numbered against their order in space. Values are Hounsfield units: stored 1024 more."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = affine_of(cosines, steps)
    paths = []
    for index, picture in enumerate(values):
        dataset = grey((picture.astype(np.int32) + 1024).astype(np.uint16))
        uid = generate_uid()
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT if modality == "CT" else MR
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.49", series
        dataset.FrameOfReferenceUID, dataset.Modality, dataset.SeriesNumber = frame, modality, 3
        dataset.InstanceNumber = len(values) - index
        dataset.PatientBirthDate, dataset.PatientSex, dataset.AccessionNumber = "19330301", "F", "SECRET-ACC"
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "SECRET", "20240102", "101112"
        dataset.ReferringPhysicianName = "Secret^Doctor"
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.ImageOrientationPatient = list(cosines)
        dataset.ImagePositionPatient = [round(float(part), 4) for part in affine[:3] @ (index, 0, 0, 1)]
        dataset.PixelSpacing, dataset.SliceThickness = [steps[1], steps[2]], steps[0]
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        paths.append(save(dataset, folder, f"{len(values) - index:03d}.dcm"))
    return paths


def write_enhanced(path: Path, values: NDArray[np.int16]) -> Path:
    """An enhanced MR file whose frames are not in the order of space."""
    order = np.random.default_rng(1).permutation(len(values))
    dataset = grey((values[order].astype(np.int32) + 1024).astype(np.uint16))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID, dataset.Modality, dataset.SeriesNumber = generate_uid(), "MR", 1
    affine = affine_of()

    def item(**elements: Any) -> Dataset:
        made = Dataset()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
            PixelMeasuresSequence=[item(PixelSpacing=[STEPS[1], STEPS[2]], SliceThickness=STEPS[0])],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="US")],
        )
    ]
    positions = [[float(part) for part in affine[:3] @ (index, 0, 0, 1)] for index in order]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=position)]) for position in positions
    ]
    return save(dataset, path.parent, path.name)


def write_nifti(path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    """(slice, row, column[, modality]) as the usual converters write it: axes (column, row, slice), RAS."""
    nib = pytest.importorskip("nibabel")
    lps = affine_of() if affine is None else affine
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps[:, [2, 1, 0, 3]]
    axes = (2, 1, 0) if values.ndim == 3 else (2, 1, 0, 3)
    nib.save(nib.Nifti1Image(values.transpose(axes), ras), path)
    return path


def threshold_bundle(folder: Path, card: VolumeCard) -> Path:
    """A bundle whose graph labels voxels by their value: background below 100, ball from there, box from 600. One modality."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    shape = [1, 3, 1, 1, 1]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["frames", "slopes"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offsets"], ["logits"]),
        ],
        "threshold",
        [helper.make_tensor_value_info("frames", types.FLOAT, ["batch", 1, *card.patch])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", 3, *card.patch])],
        # Lines that cross at 100 and at 600.
        [
            helper.make_tensor("slopes", types.FLOAT, shape, [0.0, 0.01, 0.02]),
            helper.make_tensor("offsets", types.FLOAT, shape, [0.0, -1.0, -7.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / MODEL)
    manifest = Manifest(
        model=ModelCard(name="threshold"),
        input=TensorCard(name="frames", dtype="float32", shape=("batch", 1, *card.patch)),
        outputs=(TensorCard(name="logits", dtype="float32", shape=("batch", 3, *card.patch)),),
        task="segmentation",
        volume=card,
        class_names=LABELS,
        precision="fp32",
        opset=20,
        files={MODEL: sha256(folder / MODEL)},
    )
    write_manifest(folder, manifest)
    return folder


def labels_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """What the threshold bundle says of raw values."""
    return ((values > 100).astype(np.uint8) + (values > 600)).astype(np.uint8)
