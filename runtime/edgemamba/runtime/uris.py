"""How sources and sinks are named: one scheme of URIs, the same in Python and on the command line.

``SCHEME://LOCATION``, or a plain path, a camera's number, or a GStreamer pipeline (``ELEMENT ! ELEMENT``, where no file is called
so). Options of our own are a query (``?existing=1``), save for network video, whose query belongs to the server: there they
are a fragment (``#timeout=5``), which no client sends.

What is shown of a URI to people, logs and reports is :attr:`Uri.shown`, or passes :func:`without_secrets`: cameras and archives
are often addressed with their password.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote, urlsplit

from edgemamba.runtime.errors import EdgeMambaError, SinkError, SourceError

__all__ = [
    "SINK_SCHEMES",
    "SOURCE_SCHEMES",
    "Uri",
    "has_host",
    "network_url",
    "number",
    "parse_sink",
    "parse_source",
    "without_secrets",
]

#: The schemes of sources, and what each names.
SOURCE_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "file": "an image, DICOM or video file, a folder, a glob",
        "v4l2": "a camera by number or device path",
        "csi": "a Jetson's CSI camera by number",
        "gst": "a GStreamer pipeline",
        "rtsp": "network video",
        "rtsps": "network video over TLS",
        "http": "network video (MJPEG), or a video file on a server",
        "https": "the same over TLS",
        "dicom": "a DICOM file, folder or DICOMDIR, in slice order",
        "dimse": "a DICOM receiver",
        "dicomweb": "a study or series of a DICOMweb server",
        "dicomwebs": "the same over TLS",
        "watch": "a folder whose new files are read as they come",
    }
)

#: The schemes of sinks, and what each names.
SINK_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "file": "a file or folder, its kind by its suffix",
        "dicom": "a folder of DICOM objects (SR, SC)",
        "window": "a window",
        "web": "a live web page",
        "metrics": "Prometheus metrics",
        "dimse": "a DICOM archive (C-STORE)",
        "dicomweb": "a DICOMweb server (STOW-RS)",
        "dicomwebs": "the same over TLS",
    }
)

# Their query is the server's.
_NETWORK_VIDEO = ("rtsp", "rtsps", "http", "https")
_FILES = ("file", "dicom", "watch")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# User and password: all before the last @ of a word after "://", for passwords are found unescaped, slashes and @ included.
_CREDENTIALS = re.compile(r"(?<=://)[^\s\"']*@")
# Properties of GStreamer elements and parameters of queries.
_SECRETS = re.compile(
    r"(?i)\b((?:user[-_]?(?:id|pw|name)?|pass(?:word|wd)?|pw|pwd|token|secret|key|auth|api[-_]?key)=)(\"[^\"]*\"|[^\s&\"'#]+)"
)


@dataclass(frozen=True)
class Uri:
    """A source or sink as the user named it.

    Attributes:
        scheme: in lower case; of plain paths ``file``, of camera numbers ``v4l2``.
        location: what follows ``://`` without our own options; of files a path, percent-decoded if it was a URI.
        options: our own options, by name.
        text: as given; for libraries, never for people: it may hold a password.
        plain: it was given without a scheme.
    """

    scheme: str
    location: str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict)
    text: str = field(default="", repr=False)
    plain: bool = False

    @property
    def shown(self) -> str:
        """For people: without credentials, and for network video without the query, which may hold them too."""
        if self.plain:
            return without_secrets(self.location) if self.scheme == "gst" else self.location
        location = self.location.partition("?")[0] if self.scheme in _NETWORK_VIDEO else self.location
        return without_secrets(f"{self.scheme}://{location}")

    def __str__(self) -> str:
        return self.shown

    def allow(self, known: Collection[str], error: type[EdgeMambaError]) -> None:
        """Refuse options other than ``known``.

        Raises:
            error: it has another one.
        """
        for name in self.options:
            if name not in known:
                listed = f"known are {', '.join(sorted(known))}" if known else "it takes none"
                raise error(f"{self.shown}: unknown option {name}; {listed}")


def parse_source(source: str | int | Path) -> Uri:
    """Take apart what names a source.

    Raises:
        SourceError: the scheme is unknown, or a camera's number is negative.
    """
    if isinstance(source, bool) or (isinstance(source, int) and source < 0):
        raise SourceError(f"a camera is a number from 0, not {source}")
    text = str(source)
    if isinstance(source, int) or (isinstance(source, str) and text.isascii() and text.isdecimal()):
        return Uri("v4l2", text, text=text, plain=True)
    if re.fullmatch(r"/dev/video\d+", text):
        return Uri("v4l2", text, text=text, plain=True)
    return _parse(source, SOURCE_SCHEMES, SourceError, "source")


def parse_sink(sink: str | Path) -> Uri:
    """Take apart what names a sink.

    Raises:
        SinkError: the scheme is unknown.
    """
    return _parse(sink, SINK_SCHEMES, SinkError, "sink")


def number(uri: Uri, name: str, default: float, error: type[EdgeMambaError], least: float = 0.0) -> float:
    """An option that is a number of at least ``least``.

    Raises:
        error: it is not.
    """
    text = uri.options.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise error(f"{uri.shown}: {name}={text} is no number from {least:g} on")
    return value


def without_secrets(text: str) -> str:
    """The text with user names, passwords and tokens of the URLs and pipelines in it replaced by ``***``."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _parse(given: str | Path, known: Mapping[str, str], error: type[EdgeMambaError], kind: str) -> Uri:
    text = str(given)
    match = None if isinstance(given, Path) else _SCHEME.match(text)
    if match is None:
        if not text.strip():
            raise error(f"the {kind}'s name is empty")
        pipeline = kind == "source" and " ! " in text and not isinstance(given, Path) and not Path(text).exists()
        return Uri("gst" if pipeline else "file", text, text=text, plain=True)
    scheme, rest = match[1].lower(), match[2]
    if scheme not in known:
        schemes = ", ".join(f"{name}://" for name in known)
        plain = "a camera number or a path" if kind == "source" else "a path"
        raise error(f"{scheme}:// is no {kind}; give {plain}, or one of: {schemes}")
    if scheme in _FILES:
        uri = _file(scheme, text, rest)
        if not uri.location:  # which would be the current folder
            raise error(f"{scheme}:// needs a path")
        return uri
    if scheme in _NETWORK_VIDEO:
        location, _, options = rest.partition("#")
        return Uri(scheme, location, _options(options), text)
    if scheme == "gst":  # "?" and "#" may be part of any element's properties
        return Uri(scheme, rest, text=text)
    location, _, options = rest.partition("?")
    return Uri(scheme, unquote(location), _options(options), text)


def _file(scheme: str, text: str, rest: str) -> Uri:
    """``file:///an/absolute/path``; other than RFC 8089 also ``file://a/relative/one``, for what follows is a path, no host."""
    if scheme == "file":  # a "?" in it is a wildcard
        path = unquote(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest)
        return Uri(scheme, path, text=text)
    location, _, options = rest.partition("?")
    return Uri(scheme, unquote(location), _options(options), text)


def _options(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True))


def network_url(uri: Uri) -> str:
    """Network video as a client opens it: without our fragment."""
    return f"{uri.scheme}://{uri.location}"


def has_host(uri: Uri) -> bool:
    """Whether a network address names a host."""
    try:
        return bool(urlsplit(network_url(uri)).hostname)
    except ValueError:
        return False
