"""A mask as a DICOM Segmentation (PS3.3 A.51): binary, one segment for each label, with references to the source's slices."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import __version__
from edgemamba.runtime.dicom_geometry import geometry
from edgemamba.runtime.dicom_network.quiet import quiet
from edgemamba.runtime.dicom_network.references import made_when, reference, state_method
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.sinks.dicom_capture import MANUFACTURER
from edgemamba.runtime.sinks.dicom_report import SCHEME, class_code
from edgemamba.runtime.volumes.card import Code, SegmentCodes
from edgemamba.runtime.volumes.reading import Study
from edgemamba.runtime.volumes.segmenting import LabelFigures, Segmentation
from edgemamba.runtime.volumes.series import Plane
from edgemamba.runtime.whole_files import write_whole

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["make_segmentation", "segmentation_sources", "write_segmentation"]

_FAMILY = Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")
_SERIES_NUMBER = 9003


def write_segmentation(
    path: Path,
    result: Segmentation,
    *,
    model: str,
    version: str,
    codes: Mapping[str, SegmentCodes],
    include_phi: bool,
) -> None:
    """Write ``path``, whole or not at all.

    Raises:
        SinkError: no object can be made of the source, or the file cannot be written.
    """
    written = make_segmentation(result, model=model, version=version, codes=codes, include_phi=include_phi)
    buffer = io.BytesIO()
    written.save_as(buffer, enforce_file_format=True)
    try:
        write_whole(path, buffer.getvalue(), private=True)
    except OSError as error:
        raise SinkError(f"{path} cannot be written: {error.strerror or error}") from None


def make_segmentation(
    result: Segmentation, *, model: str, version: str, codes: Mapping[str, SegmentCodes], include_phi: bool
) -> Dataset:
    """Build the object.

    What it says of the patient follows :mod:`edgemamba.runtime.dicom_network.references`; besides, the slices' places and their
    Frame of Reference UID are kept, without which a segmentation lies nowhere.

    Args:
        result: of a study whose first modality is DICOM.
        model: the model's name.
        version: of the model: its file's digest.
        codes: what labels are, by name.
        include_phi: name the patient.

    Returns:
        highdicom's ``Segmentation``. Slices without any label have no frame.

    Raises:
        SinkError: the source is not DICOM, lacks what an object must refer to, or is spread over several multi-frame files.
        MissingExtraError: highdicom is not installed.
    """
    hd = require("highdicom", purpose="writing DICOM objects")
    seg = require("highdicom.seg")
    schemes = require("highdicom.coding_schemes")
    quiet("highdicom")
    quiet("pydicom")
    planes = result.study.planes
    sources = segmentation_sources(result.study, include_phi)
    private = any(label.name not in codes or codes[label.name].type is None for label in result.labels)
    scheme = schemes.CodingSchemeIdentificationItem(SCHEME, name="class names of models run by edgemamba")
    try:
        written: Dataset = seg.Segmentation(
            source_images=sources,
            pixel_array=_frames(result.mask, planes),
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(result.labels, codes, model, version),
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            series_description=f"{MANUFACTURER}: segmentation",
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=model[:64],
            software_versions=__version__,
            device_serial_number=version[:64],
            content_label="SEGMENTATION",
            content_description=f"segmented by {MANUFACTURER} {__version__}"[:64],
            omit_empty_frames=bool(result.mask.any()),
            coding_schemes=[scheme] if private else None,
            specific_character_set="ISO_IR 192",
            **made_when(include_phi),
        )
    except Exception as error:  # what was wrong may quote the patient: only its kind is said
        raise SinkError(f"{result.study.name}: no DICOM SEG can be made of it ({type(error).__name__})") from None
    if not include_phi:
        state_method(written)
    return written


def segmentation_sources(study: Study, include_phi: bool) -> list[Dataset]:
    """What the segmentation of a study refers to, as highdicom wants it: slice after slice, or one multi-frame file.

    Raises:
        SinkError: as :func:`make_segmentation` says; called before a study is segmented, it says so in time.
    """
    if not study.planes:
        raise SinkError(f"{study.name} is not DICOM, to which a DICOM SEG could refer; write a .nii.gz mask")
    try:
        return _sources(study.planes, include_phi)
    except ValueError as error:
        raise SinkError(f"{study.name}: {error}") from None


def _sources(planes: Sequence[Plane], include_phi: bool) -> list[Dataset]:
    if len({plane.path for plane in planes}) == len(planes):
        return [_source(plane, _distance(planes), include_phi) for plane in planes]
    if len({plane.path for plane in planes}) > 1:
        raise ValueError(
            "its slices are spread over several multi-frame files; give one of them, or write a .nii.gz mask"
        )
    if len(planes) != int(planes[0].header.get("NumberOfFrames") or 1):
        raise ValueError("not all of its frames are slices of the volume")
    return [_multi_frame(planes, include_phi)]


def _with_place(header: Dataset, include_phi: bool) -> Dataset:
    source = reference(header, include_phi)
    frame = str(header.get("FrameOfReferenceUID") or "")
    if not frame:
        raise ValueError("(0020,0052) Frame of Reference UID is missing, so a segmentation would lie nowhere")
    source.FrameOfReferenceUID = frame
    source.PositionReferenceIndicator = ""
    return source


def _distance(planes: Sequence[Plane]) -> float:
    """From one slice to the next, in mm."""
    return float(np.linalg.norm(np.subtract(planes[1].position, planes[0].position)))


def _thickness(plane: Plane, distance: float) -> float:
    """Of the slices. The element may be empty in their files, but not in a segmentation's; then slices touch each other."""
    thickness = geometry(plane.header, plane.frame).get("slice_thickness")
    return distance if thickness is None else float(thickness)


def _source(plane: Plane, distance: float, include_phi: bool) -> Dataset:
    source = _with_place(plane.header, include_phi)
    source.ImagePositionPatient = list(plane.position)
    source.ImageOrientationPatient = list(plane.cosines)
    source.PixelSpacing = list(plane.spacing)
    source.SliceThickness = _thickness(plane, distance)
    return source


def _multi_frame(planes: Sequence[Plane], include_phi: bool) -> Dataset:
    """An enhanced instance, of whose functional groups only those that say where its frames lie are repeated."""
    from pydicom import Dataset

    source = _with_place(planes[0].header, include_phi)
    source.NumberOfFrames = len(planes)
    shared = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(planes[0].cosines)
    measures.PixelSpacing = list(planes[0].spacing)
    measures.SpacingBetweenSlices = _distance(planes)
    measures.SliceThickness = _thickness(planes[0], measures.SpacingBetweenSlices)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    source.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for plane in sorted(planes, key=lambda plane: plane.frame):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = list(plane.position)
        group.PlanePositionSequence = [position]
        frames.append(group)
    source.PerFrameFunctionalGroupsSequence = frames
    return source


def _frames(mask: NDArray[np.uint8], planes: Sequence[Plane]) -> NDArray[np.uint8]:
    """The mask's slices in the order of the sources' frames."""
    if len({plane.path for plane in planes}) > 1:
        return mask
    return np.ascontiguousarray(mask[np.argsort([plane.frame for plane in planes])])


def _descriptions(
    labels: Sequence[LabelFigures], codes: Mapping[str, SegmentCodes], model: str, version: str
) -> list[Any]:
    hd = require("highdicom")
    seg, sr = require("highdicom.seg"), require("highdicom.sr")

    def concept(code: Code) -> Any:
        return sr.CodedConcept(code.value, code.scheme, code.meaning)

    algorithm = hd.AlgorithmIdentificationSequence(name=model[:64], version=version[:64], family=concept(_FAMILY))
    descriptions = []
    for label in labels:
        known = codes.get(label.name, SegmentCodes())
        descriptions.append(
            seg.SegmentDescription(
                segment_number=label.index,
                segment_label=" ".join(label.name.replace("\\", "/").split())[:64] or f"label {label.index}",
                segmented_property_category=concept(known.category),
                segmented_property_type=concept(known.type) if known.type is not None else class_code(sr, label.name),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
        )
    return descriptions
