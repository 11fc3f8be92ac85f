"""Results as a Structured Report: TID 1500 "Measurement Report" (PS3.16), as Comprehensive SR (PS3.3 A.35.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemamba.runtime import __version__
from edgemamba.runtime.dicom_network.references import frame_reference, made_when, state_method
from edgemamba.runtime.extras import require
from edgemamba.runtime.predictions import TopClass
from edgemamba.runtime.sinks.dicom_capture import MANUFACTURER

if TYPE_CHECKING:
    from pydicom import Dataset

#: Coding scheme of the class names of models, which are in no public one. Codes are digests of the names.
SCHEME = "99EDGEMAMBA"


@dataclass(frozen=True)
class Finding:
    """What was found on one frame: its number in the instance, from 1, and its classes, best first."""

    frame_number: int
    top: tuple[TopClass, ...]


def make_report(
    source: Dataset,
    findings: Sequence[Finding],
    *,
    series_uid: str,
    number: int,
    model: str,
    version: str,
    include_phi: bool,
) -> Dataset:
    """Build the report of one instance: a group (TID 1501) for each class that a finding names.

    A group holds the class as its Finding (121071, DCM), the model's probability as Certainty of Finding (111013, DCM) in
    percent, the model as the algorithm (TID 4019), and a reference to the frame.

    Args:
        source: from :func:`~edgemamba.runtime.dicom_network.references.reference`.
        findings: of the instance's frames, at least one.
        series_uid: of the series that the report becomes part of.
        number: the Instance Number in that series, from 1.
        model: the model's name.
        version: of the model: its file's digest.
        include_phi: whether ``source`` names the patient.

    Returns:
        highdicom's ``ComprehensiveSR``: complete, unverified, preliminary.
    """
    hd = require("highdicom", purpose="writing DICOM objects")
    sr = require("highdicom.sr")
    schemes = require("highdicom.coding_schemes")
    device_type = require("pydicom.sr.codedict").codes.DCM.Device
    algorithm = sr.AlgorithmIdentification(name=model[:64], version=version[:64])
    groups = [
        _group(hd, sr, source, finding.frame_number, item, algorithm) for finding in findings for item in finding.top
    ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID.from_uuid(_software_uuid()),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=model[:64],
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=device_type, observer_identifying_attributes=device
            )
        ),
        procedure_reported=sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )
    report: Dataset = sr.ComprehensiveSR(
        evidence=[source],
        content=content,
        series_instance_uid=series_uid,
        series_number=9002,
        series_description=f"{MANUFACTURER}: results",
        sop_instance_uid=hd.UID(),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:64],
        software_versions=__version__,
        is_complete=True,
        specific_character_set="ISO_IR 192",
        coding_schemes=[schemes.CodingSchemeIdentificationItem(SCHEME, name="class names of models run by edgemamba")],
        **made_when(include_phi),
    )
    if not include_phi:
        state_method(report)
    return report


def _group(hd: Any, sr: Any, source: Dataset, frame_number: int, item: TopClass, algorithm: Any) -> Any:
    frame = frame_reference(source, frame_number)
    image = sr.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=source.SOPClassUID,
        referenced_sop_instance_uid=source.SOPInstanceUID,
        referenced_frame_numbers=None if frame is None else [frame],
    )
    certainty = sr.Measurement(
        name=sr.CodedConcept("111013", "DCM", "Certainty of Finding"),
        value=round(100 * float(item.probability), 4),
        unit=sr.CodedConcept("%", "UCUM", "Percent"),
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=f"frame {frame_number} class {item.index}"),
        finding_type=class_code(sr, item.name),
        algorithm_id=algorithm,
        measurements=[certainty],
        source_images=[image],
    )


def class_code(sr: Any, name: str) -> Any:
    """A coded concept for a class's name: code ``C`` and 15 digits of its SHA-256, meaning: the name, at most 64 characters."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:15].upper()
    meaning = " ".join(name.replace("\\", "/").split())[:64] or "unnamed"
    return sr.CodedConcept(f"C{digest}", SCHEME, meaning)


def _software_uuid() -> str:
    """Of this version of the software, not of the device it runs on: a device's UID would tell where."""
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgemamba/{__version__}"))
