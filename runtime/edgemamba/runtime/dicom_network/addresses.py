"""URLs of DICOM peers: ``dimse://AET@host:port?...`` and ``dicomweb[s]://[user:password@]host[:port]/base?...``."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from edgemamba.runtime.errors import EdgeMambaError

#: The AE title under which edgemamba calls others.
OWN_TITLE = "EDGEMAMBA"
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class DimseAddress:
    """An application entity: its AE title, host and TCP port, and the URL's options as text."""

    ae_title: str
    host: str
    port: int
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"dimse://{self.ae_title}@{host}:{self.port}"


@dataclass(frozen=True)
class WebAddress:
    """A DICOMweb service, and the study and series that the URL names.

    ``str()`` holds neither credentials nor UIDs, which is why this and not the URL goes into messages.
    """

    service: str
    study: str | None = None
    series: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return "dicomweb" + self.service.removeprefix("http")


def parse_dimse(url: str, options: Collection[str], error: type[EdgeMambaError]) -> DimseAddress:
    """Take a ``dimse://`` URL apart; ``options`` are those it may carry.

    Raises:
        error: a part is missing or wrong; one line says which.
    """
    parts = _split(url, error)
    title = unquote(parts.username or "")
    check_title(title, error)
    port = _port(parts, error)
    if not parts.hostname or port is None or parts.path.strip("/"):
        raise error(f"{_plain(url)}: give dimse://AET@host:port, for instance dimse://EDGEMAMBA@0.0.0.0:11112")
    return DimseAddress(title, parts.hostname, port, _options(parts, options, error))


def parse_dicomweb(url: str, options: Collection[str], error: type[EdgeMambaError]) -> WebAddress:
    """Take a ``dicomweb://`` (HTTP) or ``dicomwebs://`` (HTTPS) URL apart; ``options`` are those it may carry.

    Credentials are the URL's, or those of ``EDGEMAMBA_DICOMWEB_USER`` and ``EDGEMAMBA_DICOMWEB_PASSWORD``.

    Raises:
        error: a part is missing or wrong; one line says which, without the credentials.
    """
    parts = _split(url, error)
    port = _port(parts, error)
    if not parts.hostname:
        raise error(f"{_plain(url)}: give dicomweb://host:port/base/studies/UID")
    base, study, series = parts.path.rstrip("/"), None, None
    if match := re.fullmatch(r"(?P<base>.*?)/studies(/(?P<study>[^/]*)(/series/(?P<series>[^/]*))?)?", base):
        base, study, series = match["base"], match["study"], match["series"]
        for kind, uid in (("study", study), ("series", series)):
            if uid is not None and not is_uid(uid):
                raise error(f"{_plain(url)}: the {kind}'s UID is not made of digits and dots")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    scheme = "https" if parts.scheme.lower() == "dicomwebs" else "http"
    service = f"{scheme}://{host}{f':{port}' if port else ''}{base}"
    user = unquote(parts.username) if parts.username else os.environ.get("EDGEMAMBA_DICOMWEB_USER")
    password = unquote(parts.password) if parts.password else os.environ.get("EDGEMAMBA_DICOMWEB_PASSWORD")
    credentials = (user, password or "") if user else None
    return WebAddress(service, study, series, _options(parts, options, error), credentials)


def is_uid(text: str) -> bool:
    """Whether the text has the form of a UID (PS3.5 9.1; leading zeros, which some devices write, are let through)."""
    return _UID.fullmatch(text) is not None


def check_title(title: str, error: type[EdgeMambaError]) -> None:
    """Refuse what is no AE title (PS3.5 6.2: at most 16 printable ASCII characters, no backslash, not all spaces)."""
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", title) or not title.strip():
        shown = title.encode("ascii", "replace").decode()[:40]
        raise error(f"{shown!r} is not an AE title: 1 to 16 printable ASCII characters, no backslash")


def number(options: dict[str, str], name: str, default: float, error: type[EdgeMambaError]) -> float:
    """A positive number among a URL's options.

    Raises:
        error: it is not one.
    """
    text = options.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise error(f"{name}={text}: give a positive number")
    return value


def state_folder() -> Path:
    """Where spool, queue and salt are kept unless a folder is named: ``$XDG_STATE_HOME/edgemamba``."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "edgemamba"


def _split(url: str, error: type[EdgeMambaError]) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as reason:
        raise error(f"{_plain(url)} is not a URL: {reason}") from None


def _port(parts: SplitResult, error: type[EdgeMambaError]) -> int | None:
    try:
        return parts.port
    except ValueError:
        raise error(f"{_plain(parts.geturl())}: the port is not a number from 0 to 65535") from None


def _options(parts: SplitResult, known: Collection[str], error: type[EdgeMambaError]) -> dict[str, str]:
    found = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in found:
        if name not in known:
            raise error(f"{_plain(parts.geturl())}: unknown option {name}; known are {', '.join(sorted(known))}")
    return found


def _plain(url: str) -> str:
    """The URL without what may not be shown: user, password, study."""
    return re.sub(r"(?<=://)[^/@]*:[^/@]*@", "", url.partition("?")[0]).partition("/studies/")[0]
