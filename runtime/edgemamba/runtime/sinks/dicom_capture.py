"""A result as a Secondary Capture image (PS3.3 A.8.1): the annotated frame, with a reference to its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import __version__
from edgemamba.runtime.dicom_network.references import frame_reference, made_when, state_method
from edgemamba.runtime.extras import require

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "edgemamba"
_BIPED = frozenset("APRLHF")


def make_capture(
    source: Dataset,
    header: Dataset,
    picture: NDArray[np.uint8],
    *,
    frame_number: int,
    series_uid: str,
    number: int,
    model: str,
    include_phi: bool,
) -> Dataset:
    """Build a Secondary Capture image.

    Args:
        source: from :func:`~edgemamba.runtime.dicom_network.references.reference`.
        header: the source instance's, of which only the orientation and the history of lossy compression are taken.
        picture: uint8 (H, W, 3) RGB, annotated.
        frame_number: of the frame in the source instance, from 1.
        series_uid: of the series that the image becomes part of.
        number: the Instance Number in that series, from 1.
        model: the model's name.
        include_phi: whether ``source`` names the patient.

    Returns:
        highdicom's ``SCImage``, RGB of 8 bits, uncompressed.
    """
    sc = require("highdicom.sc", purpose="writing DICOM objects")
    uid = require("highdicom").UID()
    image: Dataset = sc.SCImage(
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom wants one; what the source says is put below
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=series_uid,
        series_number=9001,
        series_description=f"{MANUFACTURER}: annotated pictures",
        sop_instance_uid=uid,
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:64],
        software_versions=__version__,
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate,
        patient_sex=source.PatientSex or None,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate or None,
        study_time=source.StudyTime or None,
        referring_physician_name=source.ReferringPhysicianName,
        specific_character_set="ISO_IR 192",
        **made_when(include_phi),
    )
    if "IssuerOfPatientID" in source:
        image.IssuerOfPatientID = source.IssuerOfPatientID
    image.PatientOrientation = _orientation(header)
    image.Laterality = header.get("Laterality") if header.get("Laterality") in ("L", "R") else ""
    image.ConversionType = "WSD"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    image.DerivationDescription = f"classified and annotated by {MANUFACTURER} {__version__}"
    image.SourceImageSequence = [_source_item(source, frame_number)]
    if "BurnedInAnnotation" in source:
        image.BurnedInAnnotation = source.BurnedInAnnotation
    _keep_lossy_history(image, header)
    if not include_phi:
        state_method(image)
    return image


def _source_item(source: Dataset, frame_number: int) -> Dataset:
    """An item of the Source Image Sequence (PS3.3 C.12.4), with its purpose (CID 7202)."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    number = frame_reference(source, frame_number)
    if number is not None:
        item.ReferencedFrameNumber = number
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _orientation(header: Dataset) -> Any:
    """Patient Orientation of the source, which the picture shares; empty (type 2C) where it states none."""
    value = header.get("PatientOrientation")
    try:
        rows, columns = (str(part) for part in value or ())
    except (TypeError, ValueError):
        return None
    return [rows, columns] if rows and columns and set(rows + columns) <= _BIPED else None


def _keep_lossy_history(image: Dataset, header: Dataset) -> None:
    """What was once compressed with loss is marked for ever (PS3.3 C.7.6.1.1.5)."""
    if header.get("LossyImageCompression") != "01":
        return
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if header.get(keyword) not in (None, ""):
            setattr(image, keyword, header[keyword].value)
