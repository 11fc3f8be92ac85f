"""Held-out pictures as a device meets them: one multi-frame DICOM file, and a video."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edgemamba.export.demo.planes import FULL_SCALE, PLANES, SIDE, Pictures
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require

FRAME_MS = 200.0
REPEAT = 2
"""Video frames of each picture."""

# PS3.3 A.8.4: Multi-frame Grayscale Word Secondary Capture Image Storage.
_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.7.3"


def write_dicom(path: Path, pictures: Pictures) -> None:
    """Write the pictures as frames of one Secondary Capture object, 12 bits stored of 16, Explicit VR Little Endian.

    The object belongs to nobody: its patient is called DEMO^SYNTHETIC, and its UIDs are new. The modules are those that
    PS3.3 A.8.4 makes mandatory; the window spans all 12 bits (PS3.3 C.11.2.1.2.1).
    """
    pydicom = require("pydicom", purpose="writing the demo's DICOM file")
    uid = require("pydicom.uid")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = _SOP_CLASS
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID = _SOP_CLASS
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = "DEMO^SYNTHETIC", "EDGEMAMBA-DEMO"
    data.PatientBirthDate = data.PatientSex = ""
    data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    data.StudyDate = data.StudyTime = data.ReferringPhysicianName = data.StudyID = data.AccessionNumber = ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "OT", 1, 1
    data.Manufacturer = ""
    data.PatientOrientation = ""
    data.ConversionType = "SYN"
    data.SeriesDescription = "edgemamba demo: slices of the MNI152 average brain"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.BurnedInAnnotation = "NO"
    data.NumberOfFrames = len(pictures.images)
    data.FrameTime = FRAME_MS
    data.FrameIncrementPointer = pydicom.tag.Tag("FrameTime")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = SIDE
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, 0, "US"
    data.PresentationLUTShape = "IDENTITY"
    data.WindowCenter, data.WindowWidth = (FULL_SCALE + 1) / 2, FULL_SCALE + 1
    data.PixelData = pictures.images.astype("<u2").tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def write_video(path: Path, pictures: Pictures) -> None:
    """Write the pictures as an MPEG-4 video of 8 bits, each shown for ``REPEAT`` frames.

    Raises:
        SinkError: OpenCV cannot write videos here.
    """
    cv2 = require("cv2", purpose="writing the demo's video")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 1000 / FRAME_MS * REPEAT, (SIDE, SIDE))
    if not writer.isOpened():
        raise SinkError(f"{path} cannot be written: this OpenCV has no MPEG-4 encoder")
    for image in pictures.images:
        grey = np.rint(image * (255 / FULL_SCALE)).astype(np.uint8)
        for _ in range(REPEAT):
            writer.write(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    writer.release()


def write_truth(path: Path, pictures: Pictures) -> None:
    """Which slice each frame of the DICOM file is."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("frame", "plane", "mni_mm"))
        for frame, (label, found) in enumerate(zip(pictures.labels, pictures.slices, strict=True)):
            writer.writerow((frame, PLANES[label], f"{found.position:g}"))
