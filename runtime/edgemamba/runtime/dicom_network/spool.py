"""A folder of received instances: whole files only, in the order of their arrival, through crashes and restarts.

    incoming/   what is being received (*.part); whatever lies here at the start is a torso of an earlier run, and is deleted
    ready/      whole instances, synced to disk, that were acknowledged and wait to be processed
    unreadable/ acknowledged instances that could not be processed, at most 100, the newest

An instance moves from ``incoming`` to ``ready`` by a rename within the file system, after its bytes and before its
acknowledgement; it leaves ``ready`` when it has been processed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

from edgemamba.runtime.dicom_network.pseudonyms import pseudonym
from edgemamba.runtime.errors import EdgeMambaError
from edgemamba.runtime.whole_files import sync_folder

_UNREADABLE_KEPT = 100


class Part:
    """An instance on its way into the spool: a file that is written, then either kept or discarded.

    A write that fails (a full disk, a full spool) sets :attr:`failure` and discards the rest, because the sender goes on
    sending until it is answered.
    """

    def __init__(self, spool: Spool, path: Path) -> None:
        self._spool = spool
        self.path = path
        self.size = 0
        self.failure: str | None = None
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, data: bytes) -> int:
        """Append; never raises for want of room."""
        if self.failure is None and not self._spool.reserve(len(data)):
            self.failure = "the spool is full"
        if self.failure is None:
            self.size += len(data)
            try:
                self._file.write(data)
            except OSError as error:
                self._fail(error)
        return len(data)

    def sync(self) -> None:
        """Bring what was written to disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._fail(error)

    def discard(self) -> None:
        """Delete it; harmless where it was kept or deleted before."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self.path.exists():
            self.path.unlink(missing_ok=True)
            self._spool.reserve(-self.size)
        self.size = 0

    def keep(self, identifier: str) -> Path:
        """Make it a whole instance that waits; ``identifier`` is its SOP Instance UID.

        Raises:
            OSError: it cannot be brought to disk.
        """
        self.sync()
        if self.failure is not None:
            raise OSError(errno.ENOSPC, self.failure)
        self._file.close()
        path = self._spool.accept(self.path, pseudonym(identifier))
        self.size = 0
        return path

    def _fail(self, error: OSError) -> None:
        self.failure = (error.strerror or "write error").lower()


class Spool:
    """See the module. One process at a time owns a spool folder.

    Args:
        folder: made if it does not exist, readable by its owner only.
        max_bytes: what may lie in it; beyond that nothing is accepted.
        error: raised with one clear line where the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int, error: type[EdgeMambaError]) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._counter = 0
        self._closed = False
        try:
            for name in ("incoming", "ready", "unreadable"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for torso in (folder / "incoming").iterdir():
                torso.unlink(missing_ok=True)
            found = sorted((folder / "ready").glob("*.dcm"))
            self._waiting = OrderedDict((_pseudonym_of(path), path) for path in found)
            kept = [path.stat().st_size for name in ("ready", "unreadable") for path in (folder / name).iterdir()]
        except BlockingIOError:
            self._lock.close()
            raise error(f"{folder} is in use by another receiver; give each its own folder=") from None
        except OSError as reason:
            raise error(f"{folder} cannot be used as a spool: {reason.strerror}") from None
        self._used = sum(kept)
        self.recovered = len(self._waiting)

    def __len__(self) -> int:
        """Instances that wait."""
        with self._changed:
            return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nothing more fits."""
        with self._changed:
            return self._used >= self._max_bytes

    def begin(self) -> Part:
        """A new file to receive into.

        Raises:
            OSError: it cannot be made.
        """
        with self._changed:
            self._counter += 1
            number = self._counter
        return Part(self, self.folder / "incoming" / f"{time.time_ns()}-{number}.part")

    def take(self, timeout: float) -> Path | None:
        """The instance that has waited longest; None where none comes in ``timeout`` seconds, or the spool was closed."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(timeout)
            return self._waiting.popitem(last=False)[1] if self._waiting and not self._closed else None

    def name_of(self, path: Path) -> str:
        """What logs call an instance that was taken: as :func:`edgemamba.runtime.privacy.hashed` calls its UID."""
        return f"uid-{_pseudonym_of(path)}"

    def wake(self) -> None:
        """End a :meth:`take` that waits."""
        with self._changed:
            self._changed.notify_all()

    def done(self, path: Path) -> None:
        """An instance that was taken has been processed, and leaves the spool."""
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self.reserve(-size)

    def unreadable(self, path: Path) -> None:
        """An instance that was taken cannot be processed: it is put aside, and the oldest of those before it is deleted."""
        with contextlib.suppress(OSError):
            os.replace(path, self.folder / "unreadable" / path.name)
            for old in sorted((self.folder / "unreadable").iterdir())[:-_UNREADABLE_KEPT]:
                self.done(old)

    def close(self) -> None:
        """Give the folder free; what waits stays for the next start. Closing twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._lock.close()

    # --------------------------------------------------------------------------------------------------------- for Part

    def reserve(self, size: int) -> bool:
        """Count bytes as used (or, negative, as free again); False where they do not fit."""
        with self._changed:
            if size > 0 and self._used + size > self._max_bytes:
                return False
            self._used += size
            return True

    def accept(self, part: Path, name: str) -> Path:
        """Move a whole, synced file to ``ready``; it replaces one of the same instance that still waits.

        Raises:
            OSError: it cannot be moved.
        """
        with self._changed:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, "the receiver is stopping")
            # An SCU that missed our answer sends again: one instance, processed once.
            path = self._waiting.get(name)
            replaced = 0
            if path is None:
                self._counter += 1
                path = self.folder / "ready" / f"{time.time_ns():020d}-{self._counter:06d}-{name}.dcm"
            else:
                replaced = path.stat().st_size
            os.replace(part, path)
            sync_folder(path.parent)
            self._used -= replaced
            self._waiting[name] = path
            self._changed.notify_all()
            return path


def _pseudonym_of(path: Path) -> str:
    return path.stem.rpartition("-")[2]
