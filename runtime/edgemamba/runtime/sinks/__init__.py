"""Where results go. :func:`open_sink` picks the sink from a path or a URI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.images import ImageFolderSink
from edgemamba.runtime.sinks.jsonl import JsonlSink
from edgemamba.runtime.sinks.table import CsvSink
from edgemamba.runtime.sinks.video import CODECS, VideoSink
from edgemamba.runtime.uris import Uri, parse_sink

__all__ = ["CsvSink", "ImageFolderSink", "JsonlSink", "Sink", "VideoSink", "open_sink"]


def open_sink(out: str | Path, *, token: str | None = None, include_phi: bool = False) -> Sink:
    """The sink that a path or a URI asks for.

    Args:
        out: ``*.jsonl`` (``-``: standard output) for JSON Lines; ``*.csv``; ``*.mp4``, ``*.mkv``, ``*.avi`` ... for annotated
            video; a folder, or a name without suffix, for annotated pictures; ``file://`` and any of these;
            ``window://``; ``web://[HOST]:PORT`` for the live page, ``metrics://[HOST]:PORT`` for Prometheus alone;
            ``dicom://folder``, ``dimse://AET@host:port`` and ``dicomweb[s]://host/base`` for DICOM objects, see
            :func:`~edgemamba.runtime.sinks.dicom_objects.open_dicom_sink`.
        token: what visitors of a ``web://`` or ``metrics://`` sink must know; by default nothing on the loopback, and a random
            one elsewhere.
        include_phi: let DICOM objects and the web page name the patient.

    Raises:
        SinkError: no sink writes such a file, or the URI's scheme is unknown, or an option of it.
        MissingExtraError: what the sink needs is not installed.
    """
    uri = parse_sink(out)
    if uri.scheme == "file":
        return _file_sink(uri.location)
    return _OPENERS[uri.scheme](uri, token, include_phi)


def _file_sink(out: str) -> Sink:
    path = Path(out)
    if out == "-" or path.suffix.lower() in (".jsonl", ".ndjson"):
        return JsonlSink(path)
    if path.suffix.lower() == ".csv":
        return CsvSink(path)
    if path.suffix.lower() in CODECS:
        return VideoSink(path)
    if path.is_dir() or not path.suffix or out.endswith("/"):
        return ImageFolderSink(path)
    raise SinkError(
        f"{out}: results are written as .jsonl or .csv, as video ({', '.join(CODECS)}), or into a folder of pictures"
    )


# What each scheme needs is imported only when it is asked for.


def _window(uri: Uri, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.window import WindowSink

    uri.allow((), SinkError)
    return WindowSink(uri.location.strip("/") or "edgemamba")


def _web(uri: Uri, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.web import WebSink

    uri.allow((), SinkError)
    return WebSink(uri.location, token, include_phi)


def _metrics(uri: Uri, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.web import MetricsSink

    uri.allow((), SinkError)
    return MetricsSink(uri.location, token)


def _dicom(uri: Uri, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.dicom_objects import open_dicom_sink

    return open_dicom_sink(uri.text, include_phi=include_phi)  # which takes the URL apart itself


_OPENERS: dict[str, Callable[[Uri, str | None, bool], Sink]] = {
    "window": _window,
    "web": _web,
    "metrics": _metrics,
    **dict.fromkeys(("dicom", "dimse", "dicomweb", "dicomwebs"), _dicom),
}
