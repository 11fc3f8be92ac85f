"""Objects on their way to an archive: a queue on disk, sent in the background, tried again until it is answered for good.

waiting/   whole objects, oldest first; those of an earlier run are sent too
refused/   what the peer will never take, at most 100, the newest
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

from edgemamba.runtime.errors import EdgeMambaError
from edgemamba.runtime.whole_files import remove_parts, write_whole

LOGGER = logging.getLogger("edgemamba.runtime")

_REFUSED_KEPT = 100
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0


class LaterError(Exception):
    """The peer cannot take anything now; the message says why."""


class NeverError(Exception):
    """The peer will not take this object; the message says why."""


class Sender(ABC):
    """Sends objects to one peer, for :class:`Outbox`. Used by one thread."""

    name: str

    @abstractmethod
    def send(self, path: Path) -> None:
        """Send one object, and return when the peer has acknowledged it.

        Raises:
            LaterError: try this object again later.
            NeverError: do not.
        """

    def rest(self) -> None:  # noqa: B027 - optional: for senders that keep nothing open
        """Nothing waits for now: close what is open."""


class Outbox:
    """The queue of one peer. One process at a time owns its folder.

    What does not fit any more is dropped, and counted: a peer that is away for days fills the queue, and must fill neither the
    disk nor stop the stream.

    Args:
        folder: made if it does not exist, readable by its owner only.
        sender: to whom.
        max_bytes: what may wait.
        error: raised with one clear line where the folder cannot be used.
    """

    def __init__(self, folder: Path, sender: Sender, max_bytes: int, error: type[EdgeMambaError]) -> None:
        self.folder = folder
        self._sender = sender
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._closing = self._given_up = False
        self.sent = self.refused = self.dropped = 0
        try:
            for name in ("waiting", "refused"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_parts(folder / "waiting")
            self._waiting = sorted((folder / "waiting").glob("*.dcm"))
            self._used = sum(path.stat().st_size for path in self._waiting)
        except BlockingIOError:
            self._lock.close()
            raise error(f"{folder} is the queue of another process; give each its own queue=") from None
        except OSError as reason:
            raise error(f"{folder} cannot be used as a queue: {reason.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="edgemamba-outbox", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Objects that wait."""
        with self._changed:
            return len(self._waiting)

    def put(self, data: bytes) -> bool:
        """Queue an object (a whole DICOM file); False where the queue is full.

        Raises:
            OSError: it cannot be written.
        """
        with self._changed:
            if self._used + len(data) > self._max_bytes:
                self.dropped += 1
                full = self.dropped
            else:
                self._used += len(data)
                full = 0
        if full:
            if full & (full - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                LOGGER.warning("%s: its queue is full; %d objects were dropped", self._sender.name, full)
            return False
        path = self.folder / "waiting" / f"{time.time_ns():020d}-{next(self._numbers):06d}.dcm"
        try:
            write_whole(path, data, private=True)
        except OSError:
            with self._changed:
                self._used -= len(data)
            raise
        with self._changed:
            self._waiting.append(path)
            self._changed.notify_all()
        return True

    def close(self, patience: float = 10.0) -> None:
        """Send what waits, for at most ``patience`` seconds; the rest stays for the next run. Closing twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(patience)
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        self._thread.join(1.0)
        self._lock.close()

    def _run(self) -> None:
        wait = _FIRST_WAIT
        told = False
        while (path := self._next()) is not None:
            try:
                self._sender.send(path)
            except LaterError as reason:
                if not told:
                    LOGGER.warning("%s: %s; trying again, %d objects wait", self._sender.name, reason, len(self))
                told = True
                self._pause(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            except NeverError as reason:
                LOGGER.warning("%s refuses an object: %s", self._sender.name, reason)
                self._settle(path, sent=False)
            except Exception as reason:  # a defect of ours must not stop the others
                LOGGER.warning("%s: an object cannot be sent (%s)", self._sender.name, type(reason).__name__)
                self._settle(path, sent=False)
            else:
                self._settle(path, sent=True)
            wait, told = _FIRST_WAIT, False
        self._sender.rest()

    def _pause(self, seconds: float) -> None:
        """Wait before another attempt: shortly while closing, no longer once given up."""
        with self._changed:
            closing = self._closing
            seconds = min(seconds, _FIRST_WAIT) if closing else seconds
            self._changed.wait_for(lambda: self._given_up or self._closing > closing, seconds)

    def _next(self) -> Path | None:
        """The oldest object; None when all is sent and the queue is closing, or it was given up."""
        while True:
            with self._changed:
                if self._given_up or (self._closing and not self._waiting):
                    return None
                if self._waiting:
                    return self._waiting[0]
            self._sender.rest()
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait()

    def _settle(self, path: Path, *, sent: bool) -> None:
        size = 0
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            if sent:
                path.unlink()
            else:
                os.replace(path, self.folder / "refused" / path.name)
                for old in sorted((self.folder / "refused").iterdir())[:-_REFUSED_KEPT]:
                    old.unlink()
        with self._changed:
            self._waiting.pop(0)
            self._used -= size
            self.sent += sent
            self.refused += not sent
