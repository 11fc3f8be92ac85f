"""DICOM images made for a test, element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemamba.runtime.dicom_grayscale import Voi
from edgemamba.runtime.dicom_pixels import DicomImage

pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

RAMP = np.arange(-32, 32, dtype=np.int16).reshape(8, 8)


def grey(stored: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A grey image of these stored values, (H, W) or (frames, H, W)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.PatientName = "Secret^Patient"
    dataset.PatientID = "SECRET-ID"
    dataset.Modality = "OT"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 and order == "<" else "OW"
    return dataset


def of_another_kind(path: Path, tag: bytes) -> None:
    """Damage a file: an element of text, named by its four bytes and representation, says that it holds floats."""
    content = path.read_bytes()
    at = content.index(tag)
    path.write_bytes(content[: at + 4] + b"FD" + content[at + 6 :])


def save(dataset: Dataset, folder: Path, name: str = "image.dcm") -> Path:
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(dataset: Dataset, folder: Path, voi: Voi = "auto", index: int = 0) -> NDArray[Any]:
    with DicomImage(save(dataset, folder), voi) as image:
        return image.frame(index)[..., 0].astype(np.float64)
