"""A watched folder: new files are read in the order in which they become complete.

The folder is looked at now and then. The system's change notices (inotify, as watchfiles and watchdog use it) are not used: on
network mounts, where modalities and archives put their files, they tell nothing of what other machines write, and nowhere do
they tell that a file is complete. Both have to be found out by looking, and looking alone is simpler than both.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemamba.runtime.dicom_grayscale import Voi
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import LOGGER, Source
from edgemamba.runtime.sources.files import open_file
from edgemamba.runtime.sources.pictures import IMAGE_SUFFIXES, is_cut_short, looks_like_dicom, natural_key, read_image
from edgemamba.runtime.uris import Uri, number

__all__ = ["WatchSource", "open_watch"]

_VIDEO_SUFFIXES = frozenset(
    (".avi", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
# What writers call a file until it is whole.
_TEMPORARY_SUFFIXES = frozenset((".crdownload", ".filepart", ".part", ".partial", ".swp", ".temp", ".tmp"))
_MARKED = frozenset((".jpe", ".jpeg", ".jpg", ".png"))  # whose end can be seen
# A look at a large or slow folder takes at most this share of the time.
_SHARE = 0.2

# Inode, size in bytes, time of the last change in nanoseconds: a file that keeps all three is not being written.
_Signature = tuple[int, int, int]


def open_watch(uri: Uri, voi: Voi) -> WatchSource:
    """``watch://FOLDER?existing=1&settle=1&patience=30&poll=0.5``; see :class:`WatchSource`.

    Raises:
        SourceError: there is no such folder, or an option is wrong.
    """
    uri.allow(("existing", "patience", "poll", "settle"), SourceError)
    return WatchSource(
        Path(uri.location).expanduser(),
        voi,
        existing=uri.options.get("existing", "0") not in ("0", ""),
        settle=number(uri, "settle", 1.0, SourceError),
        patience=number(uri, "patience", 30.0, SourceError),
        poll=number(uri, "poll", 0.5, SourceError, 0.01),
    )


@dataclass
class _Known:
    """A file in the folder: what it was when last seen, since when, and whether that has been read."""

    signature: _Signature
    since: float
    read: bool = False


class WatchSource(Source):
    """The frames of files that come into a folder or its subfolders; ends when it is interrupted or closed.

    It is not live: what nobody takes yet waits on disk. Images, DICOM files and videos are read; hidden files, those with a
    temporary suffix (``.part``, ``.tmp`` ...) and other kinds are left alone.

    A file is read once it has not changed for ``settle`` seconds and its end is there: the end marker of a JPEG or PNG, all
    frames of a DICOM file, whatever else decodes. One that never gets its end is read, and skipped or counted as cut short,
    after ``patience`` seconds without a change. A file that changes after it was read is a new one. Files that become
    complete between two looks come in the order of their last change.

    Frames' timestamps are seconds since the first; those of a cine or video follow its own clock.

    Args:
        folder: must exist now; while it is away later (a mount that is lost), its return is waited for.
        voi: how grey DICOM pictures are shown.
        existing: read what is there at the start too; else only what is new or changes.
        settle, patience: in seconds.
        poll: seconds between two looks; longer where a look takes long.

    Raises:
        SourceError: there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        voi: Voi = "auto",
        *,
        existing: bool = False,
        settle: float = 1.0,
        patience: float = 30.0,
        poll: float = 0.5,
    ) -> None:
        super().__init__(f"watch://{folder}")
        if not folder.is_dir():
            raise SourceError(f"{folder} is no folder; what is watched must exist")
        self.folder = folder
        self._voi: Voi = voi
        self._settle = settle
        self._patience = max(patience, settle)
        self._poll = poll
        self._stop = threading.Event()
        self._away = False
        self._count = 0
        self._known: dict[str, _Known] = {}
        if not existing:
            now = time.monotonic()
            self._known = {name: _Known(signature, now, read=True) for name, signature in (self._look() or {}).items()}

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        first: float | None = None
        clock = 0.0  # of the last frame given
        while not self._stop.is_set():
            begin = time.monotonic()
            ready = self._ready()
            looked = time.monotonic() - begin
            for name in ready:
                now = time.monotonic()
                first = now if first is None else first
                start = max(now - first, clock)  # a cine may last longer than it took to arrive
                for frame in self._frames(name):
                    clock = start + frame.timestamp
                    yield replace(frame, index=index + frame.index, timestamp=clock)
                    if self._stop.is_set():
                        return
                index += self._count
            self._stop.wait(max(self._poll, looked * (1 / _SHARE - 1)))

    def _ready(self) -> list[str]:
        """Files that are complete now and were not read, in order of their last change."""
        found = self._look()
        if found is None:
            return []
        now = time.monotonic()
        for name in self._known.keys() - found.keys():
            del self._known[name]
        for name, signature in found.items():
            known = self._known.get(name)
            if known is None or known.signature != signature:
                self._known[name] = _Known(signature, now)
        ready = []
        for name, known in self._known.items():
            still = now - known.since
            if not known.read and still >= self._settle and (still >= self._patience or self._is_whole(name)):
                known.read = True
                ready.append(name)
        return sorted(ready, key=lambda name: (self._known[name].signature[2], natural_key(name)))

    def _look(self) -> dict[str, _Signature] | None:
        """All files that may be of use, by their path below the folder; None while the folder is away."""
        found: dict[str, _Signature] = {}
        folders = [""]
        try:
            while folders:
                below = folders.pop()
                with os.scandir(self.folder / below) as entries:
                    for entry in entries:
                        self._note(entry, below, folders, found)
        except OSError as error:
            # A subfolder may vanish in the middle of a look; what is known stays known until a look succeeds.
            if not self._away and not self.folder.is_dir():
                self._away = True
                LOGGER.warning("%s cannot be read (%s); waiting for it", self.name, error.strerror)
            return None
        if self._away:
            self._away = False
            LOGGER.warning("%s is there again", self.name)
        return found

    def _note(self, entry: os.DirEntry[str], below: str, folders: list[str], found: dict[str, _Signature]) -> None:
        if entry.name.startswith("."):
            return
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            folders.append(name)
            return
        suffix = Path(entry.name).suffix.lower()
        if suffix in _TEMPORARY_SUFFIXES or entry.name.endswith("~"):
            return
        try:
            if entry.is_file():
                status = entry.stat()
                found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            return  # moved away in this moment

    def _is_whole(self, name: str) -> bool:
        """Whether the file's end is there. Of other kinds of files: yes, they are left alone when they are read."""
        path = self.folder / name
        suffix = path.suffix.lower()
        try:
            if self._known[name].signature[1] == 0:
                return False
            if suffix in _MARKED:
                return not is_cut_short(path.read_bytes())
            if suffix in IMAGE_SUFFIXES:
                read_image(path)
            elif looks_like_dicom(path):
                with DicomImage(path, self._voi) as image:
                    return image.whole
            elif suffix in _VIDEO_SUFFIXES:
                open_file(path, self._voi).close()
        except (OSError, SourceError):
            return False
        return True

    def _frames(self, name: str) -> Iterator[Frame]:
        """A file's frames, counted from 0 and named by its path below the folder; ``_count`` says how many, read or not."""
        path = self.folder / name
        self._count = 0
        if not (path.suffix.lower() in IMAGE_SUFFIXES | _VIDEO_SUFFIXES or looks_like_dicom(path)):
            return
        try:
            with open_file(path, self._voi) as source:
                source.skipped = self.skipped
                self._count = 1
                for frame in source:
                    self._count = frame.index + 1
                    yield replace(frame, source=name)
                self._count = max(self._count, source.length or 0)
        except SourceError as error:
            self._count = max(1, self._count)
            self.skipped.add(str(error))

    def interrupt(self) -> None:
        """End the iteration soon. Any thread may ask."""
        self._stop.set()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """Also how many files are not read yet."""
        waiting = sum(not known.read for known in list(self._known.values()))
        return {**super().describe(), "waiting": waiting}
