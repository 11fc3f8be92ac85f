"""Results as DICOM objects, in a folder or on their way to an archive. :func:`open_dicom_sink` picks by URI.

dicom://folder?objects=sr,sc                                    files
dimse://AET@host:port?calling=EDGEMAMBA&queue=folder            C-STORE
dicomweb[s]://[user:password@]host[:port]/base?queue=folder     STOW-RS
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgemamba.runtime.dicom_network.addresses import (
    OWN_TITLE,
    check_title,
    number,
    parse_dicomweb,
    parse_dimse,
    state_folder,
)
from edgemamba.runtime.dicom_network.outbox import Outbox, Sender
from edgemamba.runtime.dicom_network.quiet import quiet
from edgemamba.runtime.dicom_network.references import reference
from edgemamba.runtime.errors import SinkError, SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import DicomFrame
from edgemamba.runtime.overlay import annotate
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.dicom_capture import make_capture
from edgemamba.runtime.sinks.dicom_report import Finding, make_report
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.pictures import looks_like_dicom
from edgemamba.runtime.whole_files import remove_parts, write_whole

if TYPE_CHECKING:
    from pydicom import Dataset

    from edgemamba.runtime.engines.base import Engine
    from edgemamba.runtime.report import StreamReport

LOGGER = logging.getLogger("edgemamba.runtime")

#: Structured Report, Secondary Capture.
KINDS = ("sr", "sc")
_OPTIONS = ("calling", "ca", "max_mb", "objects", "queue", "timeout")
_MAX_MB = 4096
# Output series whose numbers are remembered: one of each kind for each source series.
_SERIES_KEPT = 1024
# A report is written with what it has when a cine has more frames than this.
_MOST_FINDINGS = 5000


def open_dicom_sink(uri: str, *, include_phi: bool = False) -> DicomSink:
    """The sink that a ``dicom://``, ``dimse://`` or ``dicomweb[s]://`` URI asks for.

    Options of the URI:
        ``objects``: ``sr`` (reports), ``sc`` (annotated pictures), or both (the default).
        ``queue``: where objects wait to be sent; by default below ``$XDG_STATE_HOME/edgemamba``. ``max_mb``: how much may
        wait there, in MiB (4096).
        ``calling`` (C-STORE): our AE title; ``tls``, ``ca``, ``cert``, ``key``: TLS, see
        :func:`~edgemamba.runtime.dicom_network.tls.client_context`. ``ca``, ``timeout`` (STOW-RS): as for the source.

    Args:
        uri: see the module.
        include_phi: name the patient in the objects; see :mod:`edgemamba.runtime.dicom_network.references`.

    Raises:
        SinkError: the URI is wrong, or its queue is in use.
        MissingExtraError: highdicom, or what sends, is not installed.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme == "dicom":
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        folder = unquote(parts.netloc + parts.path)
        unknown = set(options) - {"objects"}
        if not folder or unknown:
            what = f"unknown option {min(unknown)}; known is objects" if unknown else "name a folder"
            raise SinkError(f"{uri}: {what}")
        return DicomSink(folder, kinds=_kinds(options), include_phi=include_phi)
    if scheme == "dimse":
        from edgemamba.runtime.dicom_network.scu import DimseSender
        from edgemamba.runtime.dicom_network.tls import CLIENT_OPTIONS, client_context

        address = parse_dimse(uri, {*_OPTIONS, *CLIENT_OPTIONS} - {"timeout"}, SinkError)
        calling = address.options.get("calling", OWN_TITLE)
        check_title(calling, SinkError)
        sender: Sender = DimseSender(address, calling, client_context(address.options, SinkError))
        options = address.options
    elif scheme in ("dicomweb", "dicomwebs"):
        from edgemamba.runtime.dicom_network.stow import StowSender
        from edgemamba.runtime.dicom_network.web import WebService

        web = parse_dicomweb(uri, set(_OPTIONS) - {"calling"}, SinkError)
        options = web.options
        ca = Path(options["ca"]).expanduser() if "ca" in options else None
        if ca is not None and not ca.is_file():
            raise SinkError(f"ca={ca} is no file")
        sender = StowSender(WebService(web, number(options, "timeout", 30.0, SinkError), ca, attempts=1))
    else:
        raise SinkError(
            f"{scheme}:// is no DICOM sink; give dicom://folder, dimse://AET@host:port or dicomweb://host/base"
        )
    queue = Path(options["queue"]).expanduser() if options.get("queue") else _default_queue(sender.name)
    max_bytes = int(number(options, "max_mb", _MAX_MB, SinkError) * (1 << 20))
    return DicomSink(queue, kinds=_kinds(options), include_phi=include_phi, sender=sender, max_bytes=max_bytes)


class DicomSink(Sink):
    """Writes a Secondary Capture of each annotated frame, and a Structured Report for each source instance.

    The report of an instance is written when its last frame has been classified, when the next instance begins, or at the end.
    Only results of DICOM sources can be written; others are skipped, and counted. Without ``include_phi`` objects are
    de-identified as :mod:`edgemamba.runtime.dicom_network.references` says, and there is no picture of a source that states
    burned-in annotation.

    Args:
        path: the folder of the files, ``sr-000042-HASH.dcm`` (the frame's index, and the salted hash of the source's SOP
            Instance UID); with a ``sender``, the folder of its queue.
        kinds: of :data:`KINDS`.
        include_phi: name the patient.
        classes: how many classes of a result, best first, go into the report.
        sender: sends the objects on, from the queue.
        max_bytes: what may wait in the queue.

    Raises:
        SinkError: the queue is in use.
        MissingExtraError: highdicom is not installed.
    """

    identified = True

    def __init__(
        self,
        path: str | Path,
        *,
        kinds: Sequence[str] = KINDS,
        include_phi: bool = False,
        classes: int = 1,
        sender: Sender | None = None,
        max_bytes: int = _MAX_MB << 20,
    ) -> None:
        require("highdicom", purpose="writing DICOM objects")
        quiet("highdicom")
        quiet("pydicom")
        self.path: Path = Path(path)
        self.skipped = 0
        self._kinds = tuple(kinds)
        self._include_phi = include_phi
        self._classes = classes
        self._outbox = Outbox(self.path, sender, max_bytes, SinkError) if sender is not None else None
        self._to = sender.name if sender is not None else str(self.path)
        self._written = dict.fromkeys(KINDS, 0)
        self._series: OrderedDict[tuple[str, str], list[Any]] = OrderedDict()
        self._is_open = False
        self._may_be_dicom = False
        self._model, self._version = "unknown model", "unknown"
        self._source: Dataset | None = None  # of the report being gathered
        self._findings: list[Finding] = []
        self._index = 0

    def attach(self, report: StreamReport, engine: Engine) -> None:
        manifest = engine.bundle.manifest
        self._model = manifest.model.name
        self._version = next(
            (digest[:16] for name, digest in manifest.files.items() if name.endswith(".onnx")), "unknown"
        )

    def open(self, source: Source) -> None:
        self._may_be_dicom = any(looks_like_dicom(path) for path in source.files)
        if source.files and not self._may_be_dicom:
            raise SinkError(f"{source.name} holds no DICOM instance, to which a DICOM object could refer")
        if self._outbox is None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                remove_parts(self.path, "s[rc]-*.dcm")
            except OSError as error:
                raise SinkError(f"{self.path} cannot be made a folder: {error.strerror}") from None
        self._is_open = True

    def write(self, result: Result) -> None:
        if not self._is_open:
            raise SinkError(f"{self._to} is not open")
        frame = result.frame
        header = frame.header if isinstance(frame, DicomFrame) else None
        if header is None:
            if not self._may_be_dicom and not any(self._written.values()):
                raise SinkError(f"{frame.source} is no DICOM instance, to which a DICOM object could refer")
            self._skip(frame.source, "no DICOM instance")
            return
        try:
            source = reference(header, self._include_phi)
        except SourceError as error:
            self._skip(frame.source, str(error))
            return
        except Exception as error:  # an element that pydicom cannot parse; what it says may quote it
            self._skip(frame.source, f"its header is damaged ({type(error).__name__})")
            return
        frame_number = int(frame.metadata.get("frame_number", 1))
        if "sc" in self._kinds:
            self._write_capture(source, header, result, frame_number)
        if "sr" in self._kinds:
            self._gather(source, result, frame_number)

    def close(self) -> None:
        try:
            if self._is_open:
                self._write_report()
        finally:
            self._is_open = False
            if self._outbox is not None:
                self._outbox.close()

    def describe(self) -> str:
        counts = f"{self._written['sr']} reports, {self._written['sc']} pictures"
        if self._outbox is not None:
            box = self._outbox
            counts += f"; {box.sent} sent, {len(box)} wait, {box.refused} refused, {box.dropped} dropped"
        return f"{self._to} ({counts}{f'; {self.skipped} skipped' if self.skipped else ''})"

    # -------------------------------------------------------------------------------------------------------- the objects

    def _write_capture(self, source: Dataset, header: Dataset, result: Result, frame_number: int) -> None:
        if not self._include_phi and source.get("BurnedInAnnotation") == "YES":
            self._skip(
                hashed(source.SOPInstanceUID), "its pixels show who it is (0028,0301), so no picture of it is written"
            )
            return
        picture = annotate(result.frame.pixels, result.top)
        series_uid, number = self._next_number("sc", source)
        with self._guarded(source):
            image = make_capture(
                source,
                header,
                picture,
                frame_number=frame_number,
                series_uid=series_uid,
                number=number,
                model=self._model,
                include_phi=self._include_phi,
            )
            self._save("sc", source, result.frame.index, image)

    def _gather(self, source: Dataset, result: Result, frame_number: int) -> None:
        """Add to the report of the instance, after that of another instance has been written."""
        if self._source is not None and self._source.SOPInstanceUID != source.SOPInstanceUID:
            self._write_report()
        if self._source is None:
            self._source, self._index = source, result.frame.index
        self._findings.append(Finding(frame_number, result.top[: self._classes]))
        frames = int(source.get("NumberOfFrames") or 1)
        if frame_number >= frames or len(self._findings) >= _MOST_FINDINGS:
            self._write_report()

    def _write_report(self) -> None:
        source, findings = self._source, self._findings
        self._source, self._findings = None, []
        if source is None:
            return
        series_uid, number = self._next_number("sr", source)
        with self._guarded(source):
            report = make_report(
                source,
                findings,
                series_uid=series_uid,
                number=number,
                model=self._model,
                version=self._version,
                include_phi=self._include_phi,
            )
            self._save("sr", source, self._index, report)

    @contextlib.contextmanager
    def _guarded(self, source: Dataset) -> Iterator[None]:
        """An instance about which no object can be made costs that object. What was wrong may quote the patient: only its
        kind is said."""
        try:
            yield
        except SinkError:
            raise
        except Exception as error:
            self._skip(hashed(source.SOPInstanceUID), f"no object can be made of it ({type(error).__name__})")

    def _next_number(self, kind: str, source: Dataset) -> tuple[str, int]:
        """The series of the objects of a kind about one source series, and the next Instance Number in it."""
        key = (kind, str(source.SeriesInstanceUID))
        if key not in self._series:
            self._series[key] = [str(require("highdicom").UID()), 0]
            if len(self._series) > _SERIES_KEPT:
                self._series.popitem(last=False)
        self._series.move_to_end(key)
        entry = self._series[key]
        entry[1] += 1
        return entry[0], entry[1]

    def _save(self, kind: str, source: Dataset, index: int, written: Dataset) -> None:
        buffer = io.BytesIO()
        written.save_as(buffer, enforce_file_format=True)
        try:
            if self._outbox is not None:
                if not self._outbox.put(buffer.getvalue()):
                    return
            else:
                name = f"{kind}-{index:06d}-{hashed(source.SOPInstanceUID).removeprefix('uid-')}.dcm"
                write_whole(self.path / name, buffer.getvalue(), private=True)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None
        self._written[kind] += 1

    def _skip(self, name: str, reason: str) -> None:
        self.skipped += 1
        LOGGER.warning("not written as DICOM: %s: %s", name, reason)


def _kinds(options: dict[str, str]) -> tuple[str, ...]:
    kinds = tuple(kind.strip().lower() for kind in options.get("objects", ",".join(KINDS)).split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise SinkError(f"objects={options['objects']}: give {' or '.join(KINDS)}, or both with a comma")
    return kinds


def _default_queue(name: str) -> Path:
    """One queue for each peer."""
    return state_folder() / "outbox" / re.sub(r"[^\w.-]+", "_", name)
