"""Video over the network: RTSP, HTTP MJPEG and HTTP video files, through OpenCV's FFmpeg.

A live stream that breaks is connected again, after a pause that doubles with each failed attempt up to half a minute. Pauses are
random within a factor of two, so that the cameras of a switch that was restarted are not all called in the same moment.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import LOGGER, Source
from edgemamba.runtime.sources.guarded_video import GuardedVideo
from edgemamba.runtime.uris import Uri, has_host, network_url, number

__all__ = ["Backoff", "NetworkSource"]

#: Seconds to connect and to the next frame; ``#timeout=`` sets another.
TIMEOUT_SECONDS = 5.0
# FFmpeg keeps its own timeouts; only what it does not watch (name servers) lasts longer.
_SLACK = 3.0


class Backoff:
    """Pauses between attempts: ``first`` seconds, doubled each time up to ``longest``, each times a random 0.5 to 1.

    Args:
        first, longest: in seconds.
        rng: where the jitter comes from.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, rng: random.Random | None = None) -> None:
        self._first = first
        self._longest = longest
        self._rng = rng or random.Random()
        self.attempts = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        # The exponent is bounded too: after days of attempts a power of two is no float any more.
        pause = min(self._first * 2.0 ** min(self.attempts, 60), self._longest)
        self.attempts += 1
        return pause * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """A connection has held."""
        self.attempts = 0


class NetworkSource(Source):
    """A network stream; a video file on a web server is read once, as a file is.

    Args:
        uri: of scheme ``rtsp``, ``rtsps``, ``http`` or ``https``. Options, after a ``#``: ``timeout`` in seconds for connecting
            and for each frame (5); ``retries``: end after so many failed attempts in a row (by default never; 0: a broken
            stream is not connected again); ``wait=1``: wait for a server that is not there at the start.

    Attributes:
        reconnects: how often a broken stream was connected again.

    Raises:
        SourceError: there is no stream now (without ``wait``). While iterating: it broke, and ``retries`` are used up.
    """

    live = True

    def __init__(self, uri: Uri) -> None:
        super().__init__(uri.shown)
        uri.allow(("retries", "timeout", "wait"), SourceError)
        if not has_host(uri):
            raise SourceError(f"{self.name}: no host is named; give for instance {uri.scheme}://192.168.0.10/stream")
        self._cv2 = require("cv2", purpose="reading network video")
        self._url = network_url(uri)
        self._timeout = number(uri, "timeout", TIMEOUT_SECONDS, SourceError, 0.1)
        self._retries = number(uri, "retries", 0, SourceError) if "retries" in uri.options else None
        self._waits = uri.options.get("wait", "0") not in ("0", "")
        self._backoff = Backoff()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._capture: GuardedVideo | None = None
        self.reconnects = 0
        reason = self._connect()
        if reason is not None and not self._waits:
            raise SourceError(f"{self.name}: {reason}")
        if reason is not None:
            LOGGER.warning("%s: %s; waiting for it", self.name, reason)

    def _connect(self) -> str | None:
        """Connect; why not, if not."""
        milliseconds = max(1, int(1000 * self._timeout))
        cv2, url = self._cv2, self._url
        parameters = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds),
        ]

        def open_capture() -> Any:
            return cv2.VideoCapture(url, cv2.CAP_FFMPEG, parameters)

        capture = GuardedVideo(cv2, open_capture, "edgemamba-network-video")
        with self._lock:
            self._capture = capture
        if self._stop.is_set():
            capture.interrupt()
        start = time.monotonic()
        facts = None
        with contextlib.suppress(TimeoutError):
            facts = capture.facts(self._timeout + _SLACK)
        if facts is None:
            self._disconnect()
            if time.monotonic() - start >= self._timeout:
                return f"no answer within {self._timeout:g} s"
            return "cannot be opened; is the address right, the server up, and the stream one that FFmpeg reads?"
        self.fps = facts.fps
        if facts.frames and self._url.startswith("http"):  # a file; an RTSP server's count is of one session
            self.live, self.length = False, facts.frames
        return None

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        start = 0.0
        since = time.monotonic()
        if self._capture is None:
            since = self._return(0, since)
        try:
            while not self._stop.is_set():
                capture = self._capture  # another thread may close
                pixels = None if capture is None else capture.read(self._timeout + _SLACK)
                now = time.monotonic()
                if pixels is None:
                    if not self.live or self._stop.is_set():
                        break
                    since = self._return(index, now)
                    continue
                if now - since > self._timeout:
                    self._backoff.reset()
                start = start or now
                yield Frame(pixels, index, now - start, self.name, {"reconnects": self.reconnects})
                index += 1
        finally:
            self.close()
        if self.length is not None and index < self.length - 1:
            reason = f"{self.name} broke off after {index} of {self.length} frames"
            self.skipped.add(reason, self.length - index)

    def _return(self, index: int, lost: float) -> float:
        """Connect again, however long it takes; when the connection stood again, on the monotonic clock.

        Raises:
            SourceError: ``retries`` attempts failed, or the stream never gave a frame.
        """
        if not index and not self._waits:
            raise SourceError(f"{self.name} opened, but gives no frame: none for {self._timeout:g} s")
        self._disconnect()
        failed = 0
        if index and self._retries != 0:
            LOGGER.warning("%s: broken after %d frames; connecting again", self.name, index)
        while not self._stop.is_set():
            if self._retries is not None and failed >= self._retries:
                tried = f"; {failed} attempts to connect again failed" if failed else ""
                raise SourceError(f"{self.name}: the stream broke after {index} frames{tried}")
            if self._stop.wait(self._backoff.next()):
                break
            if self._connect() is None:
                if index:
                    self.reconnects += 1
                silence = time.monotonic() - lost
                LOGGER.warning("%s: connected after %.1f s, attempt %d", self.name, silence, failed + 1)
                break
            failed += 1
        return time.monotonic()

    def _disconnect(self) -> None:
        with self._lock:
            capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def interrupt(self) -> None:
        """End the iteration soon, also while it waits for a connection."""
        self._stop.set()
        with self._lock:
            if self._capture is not None:
                self._capture.interrupt()

    def close(self) -> None:
        """Disconnect; any thread may close."""
        self.interrupt()
        self._disconnect()

    def describe(self) -> dict[str, Any]:
        """Also how often the stream was connected again."""
        return {**super().describe(), "reconnects": self.reconnects}
