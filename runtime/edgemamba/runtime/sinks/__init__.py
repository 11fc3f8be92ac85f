"""Where results go. :func:`open_sink` picks the sink from a path or a URI."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.images import ImageFolderSink
from edgemamba.runtime.sinks.jsonl import JsonlSink
from edgemamba.runtime.sinks.table import CsvSink
from edgemamba.runtime.sinks.video import CODECS, VideoSink

__all__ = ["CsvSink", "ImageFolderSink", "JsonlSink", "Sink", "VideoSink", "open_sink"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_sink(out: str | Path, *, token: str | None = None, include_phi: bool = False) -> Sink:
    """The sink that a path or a URI asks for.

    Args:
        out: ``*.jsonl`` (``-``: standard output) for JSON Lines; ``*.csv``; ``*.mp4``, ``*.mkv``, ``*.avi`` ... for annotated
            video; a folder, or a name without suffix, for annotated pictures; ``file://`` and any of these;
            ``window://``; ``web://[HOST]:PORT`` for the live page, ``metrics://[HOST]:PORT`` for Prometheus alone.
        token: what visitors of a ``web://`` or ``metrics://`` sink must know; by default nothing on the loopback, and a random
            one elsewhere.
        include_phi: let the web page show names that may identify a patient.

    Raises:
        SinkError: no sink writes such a file, or the URI's scheme is unknown.
    """
    if not isinstance(out, Path) and (match := _SCHEME.match(out)):
        scheme, rest = match[1].lower(), match[2]
        if scheme == "file":
            return _file_sink(unquote(urlsplit(out).path))
        if scheme not in _SCHEMES:
            known = ", ".join(f"{name}://" for name in ("file", *_SCHEMES))
            raise SinkError(f"{scheme}:// is no sink; results go into files and folders, or to: {known}")
        return _SCHEMES[scheme](rest, token, include_phi)
    return _file_sink(out)


def _file_sink(out: str | Path) -> Sink:
    path = Path(out)
    if str(out) == "-" or path.suffix.lower() in (".jsonl", ".ndjson"):
        return JsonlSink(path)
    if path.suffix.lower() == ".csv":
        return CsvSink(path)
    if path.suffix.lower() in CODECS:
        return VideoSink(path)
    if path.is_dir() or not path.suffix or str(out).endswith("/"):
        return ImageFolderSink(path)
    raise SinkError(
        f"{out}: results are written as .jsonl or .csv, as video ({', '.join(CODECS)}), or into a folder of pictures"
    )


# What each scheme needs is imported only when it is asked for.


def _window(rest: str, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.window import WindowSink

    return WindowSink(unquote(rest.strip("/")) or "edgemamba")


def _web(rest: str, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.web import WebSink

    return WebSink(rest, token, include_phi)


def _metrics(rest: str, token: str | None, include_phi: bool) -> Sink:
    from edgemamba.runtime.sinks.web import MetricsSink

    return MetricsSink(rest, token)


_SCHEMES: dict[str, Callable[[str, str | None, bool], Sink]] = {
    "window": _window,
    "web": _web,
    "metrics": _metrics,
}
