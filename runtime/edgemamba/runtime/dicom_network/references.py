"""What a DICOM object that we write may say of the instance that it is about.

Always: which instance, series and study it is (UIDs), its modality and orientation: without them the object refers to nothing.

With ``include_phi`` also the patient's and the study's attributes of type 1 and 2, which file the object with its patient:
Patient's Name, Patient ID and its issuer, Birth Date and Sex, Referring Physician's Name, Study ID, Date and Time, Accession
Number. Nothing else is copied.

Without it the object is de-identified by the Basic Application Level Confidentiality Profile with the Retain UIDs Option (PS3.15
annex E.1 and E.3.9), which it states (0012,0062), (0012,0064):

====================================================================  =====================================================
Patient's Name, Birth Date, Sex; Referring Physician's Name; Study    zero length (action Z)
ID, Date and Time; Accession Number
Patient ID                                                            ``EM-`` and 16 digits of a salted hash: a dummy (Z)
Content Date and Time                                                 19000101 000000: a dummy (D)
Instance Creation and Secondary Capture Date and Time                 removed (X)
UIDs of study, series and instance; Frame of Reference is not copied  kept (Retain UIDs Option)
====================================================================  =====================================================

Pixels are not cleaned (the Clean Pixel Data Option is not claimed): where the source states that annotation is burned in,
no picture is written. An archive that files by study will find the same study under two Patient IDs: send such objects to
research archives, and use ``include_phi`` for the hospital's own.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from edgemamba.runtime.dicom_network.addresses import is_uid
from edgemamba.runtime.dicom_network.pseudonyms import pseudonym
from edgemamba.runtime.errors import SourceError

if TYPE_CHECKING:
    from pydicom import Dataset

IDENTIFYING = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
)
# Values of other forms, and dates that are none, would make the object invalid; they are left out.
_ANY = re.compile(r"[^\\]*")
_FORMS = {
    "PatientSex": re.compile("[MFO]"),
    "StudyTime": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
}
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_KEPT = ("Modality", "Rows", "Columns", "NumberOfFrames", "LossyImageCompression", "BurnedInAnnotation")
# Storage classes whose instances are single frames by definition (PS3.3 A): CR, DX, MG, IO, CT, MR, US, SC, VL, PET.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SINGLE_FRAME = frozenset(
    [
        "1",
        "1.1",
        "1.1.1",
        "1.2",
        "1.2.1",
        "1.3",
        "1.3.1",
        "2",
        "4",
        "6.1",
        "7",
        "128",
        "77.1.1",
        "77.1.2",
        "77.1.3",
        "77.1.4",
    ]
)
_METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113110", "Retain UIDs Option"),
)


def reference(header: Dataset, include_phi: bool) -> Dataset:
    """A data set that stands for the source instance when objects are made from it: all that they may know.

    Raises:
        SourceError: the instance cannot be referred to, because it lacks a UID; the message names the attribute.
        Exception: whatever pydicom stumbles over in a damaged element.
    """
    from pydicom import Dataset

    source = Dataset()
    source.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _NEEDED:
        if not is_uid(str(header.get(keyword, ""))):
            raise SourceError(f"{keyword} is missing or no UID, so nothing can refer to the instance")
        setattr(source, keyword, str(header[keyword].value))
    for keyword in _KEPT:
        if header.get(keyword) not in (None, ""):
            setattr(source, keyword, header[keyword].value)
    for keyword in IDENTIFYING:
        value = _as_text(header, keyword) if include_phi else ""
        if not _valid(keyword, value):
            value = ""
        if value or keyword != "IssuerOfPatientID":
            setattr(source, keyword, value)
    if not include_phi:
        source.PatientID = f"EM-{pseudonym(_as_text(header, 'PatientID'))}"
    return source


def frame_reference(source: Dataset, frame_number: int) -> int | None:
    """The number by which to refer to a frame; None where the instance as a whole is meant.

    An instance of a class that has single frames may hold several all the same; then no number may be given.
    """
    several = int(source.get("NumberOfFrames") or 1) > 1
    return frame_number if several and source.SOPClassUID.removeprefix(_STORAGE) not in _SINGLE_FRAME else None


def state_method(written: Dataset) -> None:
    """Remove what tells when a de-identified object was made, and have it state how it was de-identified."""
    from pydicom import Dataset

    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        if keyword in written:
            delattr(written, keyword)
    written.PatientIdentityRemoved = "YES"
    written.LongitudinalTemporalInformationModified = "REMOVED"
    items = []
    for value, meaning in _METHODS:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    written.DeidentificationMethodCodeSequence = items


def made_when(include_phi: bool) -> dict[str, Any]:
    """Content Date and Time for highdicom: now, or the dummies."""
    now = datetime.datetime.now()
    return {
        "content_date": now.date() if include_phi else "19000101",
        "content_time": now.time() if include_phi else "000000",
    }


def _valid(keyword: str, value: str) -> bool:
    if not keyword.endswith("Date") or not value:
        return _FORMS.get(keyword, _ANY).fullmatch(value) is not None
    try:
        datetime.datetime.strptime(value, "%Y%m%d")
    except ValueError:
        return False
    return len(value) == 8


def _as_text(header: Dataset, keyword: str) -> str:
    """A value as text, in whatever character set it came; empty where it is absent or damaged."""
    try:
        value = header.get(keyword)
        return "" if value is None else str(value)
    except Exception:  # pydicom converts values when they are first read, and may stumble over damaged ones
        return ""
