"""A study or series of a DICOMweb service as a source.

dicomweb://[user:password@]host[:port][/base]/studies/UID[/series/UID]      HTTP
dicomwebs://...                                                             HTTPS
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemamba.runtime.dicom_network.addresses import is_uid, number, parse_dicomweb
from edgemamba.runtime.dicom_network.web import RefusedError, UnavailableError, WebService
from edgemamba.runtime.dicom_pixels import Voi
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import NOMINAL_FPS, Frame
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.pictures import PictureSource

_OPTIONS = ("ca", "max_mb", "timeout")
_MAX_MB = 1024
_TIMEOUT = 30.0
_PAGE = 200  # instances per answer of a search
# Series of these modalities hold no pictures (PS3.3 C.7.3.1.1.1).
_WITHOUT_PICTURES = frozenset(
    ("SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTRECORD", "REG", "FID", "DOC", "AU", "ECG", "HD", "EPS", "PLAN", "ANN")
)
_FIELDS = ["SOPInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"]


@dataclass(frozen=True)
class Instance:
    """What a search says of an instance.

    Attributes:
        series: its Series Instance UID.
        uid: its SOP Instance UID.
        number: its Instance Number; None where it has none.
        position: Image Position (Patient) in mm, 3 numbers, or empty.
        orientation: Image Orientation (Patient), 6 numbers, or empty.
    """

    series: str
    uid: str
    number: int | None = None
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()


def open_dicomweb(url: str, *, voi: Voi = "auto") -> DicomwebSource:
    """Open ``dicomweb://host/base/studies/UID`` or ``.../studies/UID/series/UID``; the service is searched now.

    User and password come from the URL, or from ``EDGEMAMBA_DICOMWEB_USER`` and ``EDGEMAMBA_DICOMWEB_PASSWORD``; a bearer token
    from ``EDGEMAMBA_DICOMWEB_TOKEN``. None of them is shown. Options of the URL: ``ca`` (a PEM file of certificates to
    trust), ``max_mb`` (the largest instance in MiB, 1024), ``timeout`` (seconds of silence, 30).

    Raises:
        SourceError: the URL names no study, the service does not answer or does not know the study, or nothing in it is a
            picture.
        MissingExtraError: dicomweb-client or pydicom is not installed.
    """
    require("dicomweb_client", purpose="DICOMweb")
    require("pydicom", purpose="reading DICOM files")
    address = parse_dicomweb(url, _OPTIONS, SourceError)
    if address.study is None:
        raise SourceError(f"{address}: name a study, as in dicomweb://host/base/studies/UID")
    timeout = number(address.options, "timeout", _TIMEOUT, SourceError)
    max_bytes = int(number(address.options, "max_mb", _MAX_MB, SourceError) * (1 << 20))
    ca = Path(address.options["ca"]).expanduser() if "ca" in address.options else None
    if ca is not None and not ca.is_file():
        raise SourceError(f"ca={ca} is no file")
    return DicomwebSource(WebService(address, timeout, ca), address.study, address.series, max_bytes, voi)


class DicomwebSource(Source):
    """The frames of a study or series: series by series in the order of their numbers, instances in slice order.

    One instance is fetched at a time, to a file that only its owner can read, and deleted when its frames have been taken.
    One that is not served, too large or no picture is skipped, and counted; a service that falls silent ends the source.

    Frames are named by the salted hash of their SOP Instance UID.

    Args:
        service: that is asked; closed with the source.
        study: Study Instance UID.
        series: Series Instance UID; None: all that hold pictures.
        max_bytes: of one instance.
        voi: how grey pictures are shown.
    """

    def __init__(self, service: WebService, study: str, series: str | None, max_bytes: int, voi: Voi = "auto") -> None:
        kind, uid = ("study", study) if series is None else ("series", series)
        super().__init__(f"{service.address} {kind} {hashed(uid)}")
        self._service = service
        self._study = study
        self._max_bytes = max_bytes
        self._voi: Voi = voi
        self._stopped = False
        try:
            self._instances = self._search(series)
        except UnavailableError as error:
            raise SourceError(f"{service.address}: {error}") from None
        except RefusedError as error:
            raise SourceError(f"{self.name}: {error}") from None
        if not self._instances:
            raise SourceError(f"{self.name}: the service knows no picture of it")

    def __iter__(self) -> Iterator[Frame]:
        index = read = 0
        start = 0.0
        with tempfile.TemporaryDirectory(prefix="edgemamba-") as folder:
            path = Path(folder) / "instance.dcm"
            for instance in self._instances:
                if self._stopped:
                    return
                elapsed = 0.0
                try:
                    for frame in self._frames(instance, path):
                        elapsed = frame.timestamp
                        yield replace(frame, index=index, timestamp=start + elapsed)
                        index += 1
                        read += 1
                except SourceError as error:
                    self.skipped.add(str(error).replace(str(path), hashed(instance.uid)))
                    index += 1
                except RefusedError as error:
                    self.skipped.add(f"{hashed(instance.uid)}: {error}")
                    index += 1
                except UnavailableError as error:
                    raise SourceError(f"{self._service.address}: {error}; after {read} frames") from None
                start += elapsed + 1 / NOMINAL_FPS
        if not read:
            raise SourceError(f"{self.name}: none of its {index} pictures can be read; {self.skipped.reasons[0]}")

    def interrupt(self) -> None:
        """End the iteration soon, whatever it waits for. Any thread may ask."""
        self._stopped = True
        self._service.stop()

    def close(self) -> None:
        """Close the connections."""
        self.interrupt()
        self._service.close()

    def describe(self) -> dict[str, Any]:
        """Also how many instances were found."""
        return {**super().describe(), "instances": len(self._instances)}

    def _frames(self, instance: Instance, path: Path) -> Iterator[Frame]:
        self._service.fetch(self._study, instance.series, instance.uid, path, self._max_bytes)
        name = hashed(instance.uid)
        pictures = PictureSource([path], name, voi=self._voi)
        pictures.skipped = self.skipped
        for frame in pictures:
            yield replace(frame, source=name)

    def _search(self, series: str | None) -> list[Instance]:
        client, search = self._service.client, self._service.search
        if series is not None:
            return in_slice_order(self._instances_of(series))
        fields = ["Modality", "SeriesInstanceUID", "SeriesNumber"]
        found = search(lambda: client.search_for_series(study_instance_uid=self._study, fields=fields))
        wanted = []
        for entry in found:
            uid, modality = _text(entry, "0020000E"), _text(entry, "00080060")
            if is_uid(uid) and modality not in _WITHOUT_PICTURES:
                wanted.append((_number(entry, "00200011", 0), uid))
        return [instance for _, uid in sorted(wanted) for instance in in_slice_order(self._instances_of(uid))]

    def _instances_of(self, series: str) -> list[Instance]:
        """All instances of a series, page by page; a service that knows no pages gives all at once."""
        client = self._service.client
        found: dict[str, Instance] = {}
        while True:
            options = {"limit": _PAGE, "offset": len(found), "fields": _FIELDS}
            page = self._service.search(
                lambda options=options: client.search_for_instances(self._study, series, **options)  # type: ignore[misc]
            )
            known = len(found)
            for entry in page:
                if is_uid(uid := _text(entry, "00080018")):
                    place, turn = _numbers(entry, "00200032", 3), _numbers(entry, "00200037", 6)
                    found[uid] = Instance(series, uid, _number(entry, "00200013", None), place, turn)
            if len(page) < _PAGE or len(found) == known:
                return list(found.values())


def in_slice_order(instances: Sequence[Instance]) -> list[Instance]:
    """Instances of a series by their position along the normal of their common plane (PS3.3 C.7.6.2.1.1).

    Where one lacks a position, or planes are not parallel, by Instance Number; ties by SOP Instance UID.
    """
    by_number = sorted(instances, key=lambda item: (item.number is None, item.number or 0, item.uid))
    if not all(item.position and item.orientation for item in instances):
        return by_number
    normals = np.array([np.cross(item.orientation[:3], item.orientation[3:]) for item in by_number])
    if len(normals) == 0 or np.abs(normals - normals[0]).max() > 1e-3:
        return by_number
    distances = [float(np.dot(normals[0], item.position)) for item in by_number]
    return [by_number[i] for i in np.argsort(distances, kind="stable")]


def _values(entry: Any, tag: str) -> list[Any]:
    """An attribute's values in DICOM JSON (PS3.18 F.2); empty for whatever is not in that form."""
    element = entry.get(tag) if isinstance(entry, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _text(entry: Any, tag: str) -> str:
    values = _values(entry, tag)
    return values[0].strip("\0 ") if values and isinstance(values[0], str) else ""


def _number(entry: Any, tag: str, default: int | None) -> Any:
    try:
        return int(_values(entry, tag)[0])
    except (IndexError, TypeError, ValueError):
        return default


def _numbers(entry: Any, tag: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in _values(entry, tag))
    except (TypeError, ValueError):
        return ()
    return values if len(values) == count and bool(np.isfinite(values).all()) else ()
