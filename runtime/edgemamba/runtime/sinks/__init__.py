"""Where results go. :func:`open_sink` picks the sink from a path."""

from __future__ import annotations

from pathlib import Path

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sinks.images import ImageFolderSink
from edgemamba.runtime.sinks.jsonl import JsonlSink
from edgemamba.runtime.sinks.video import CODECS, VideoSink

__all__ = ["ImageFolderSink", "JsonlSink", "Sink", "VideoSink", "open_sink"]


def open_sink(out: str | Path) -> Sink:
    """The sink that a path asks for.

    Args:
        out: ``*.jsonl`` (``-``: standard output) for JSON Lines; ``*.mp4``, ``*.mkv``, ``*.avi`` ... for annotated video; a
            folder, or a name without suffix, for annotated pictures.

    Raises:
        SinkError: no sink writes such a file.
    """
    path = Path(out)
    if str(out) == "-" or path.suffix.lower() in (".jsonl", ".ndjson"):
        return JsonlSink(path)
    if path.suffix.lower() in CODECS:
        return VideoSink(path)
    if path.is_dir() or not path.suffix or str(out).endswith("/"):
        return ImageFolderSink(path)
    raise SinkError(
        f"{out}: results are written as .jsonl, as video ({', '.join(CODECS)}), or into a folder of pictures"
    )
