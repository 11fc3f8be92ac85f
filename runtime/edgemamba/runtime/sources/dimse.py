"""A DICOM receiver as a source: modalities and archives send with C-STORE, and each instance becomes its frames.

dimse://AET@host:port?allow=CT1,PACS&from=10.0.0.0/8,127.0.0.1&folder=/var/spool/edgemamba&max_mb=512&cert=FILE&key=FILE
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemamba.runtime.dicom_network.addresses import DimseAddress, check_title, number, parse_dimse, state_folder
from edgemamba.runtime.dicom_network.receiver import Network, Receiver, Rules
from edgemamba.runtime.dicom_network.spool import Spool
from edgemamba.runtime.dicom_network.tls import SERVER_OPTIONS, server_context
from edgemamba.runtime.dicom_pixels import Voi
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import LOGGER, Source
from edgemamba.runtime.sources.pictures import PictureSource

_OPTIONS = ("allow", "folder", "from", "max_mb", "spool_mb", *SERVER_OPTIONS)
_MAX_MB = 1024
_SPOOL_MB = 20 * 1024
# How often a waiting source looks whether it was closed.
_TICK = 0.5


def open_dimse(url: str, *, voi: Voi = "auto") -> DimseSource:
    """Open ``dimse://AET@host:port``: listen on that interface and port under that AE title.

    Options of the URL:
        ``allow``: AE titles that may call, separated by commas; by default any.
        ``from``: addresses or networks that may connect, separated by commas; by default any that reaches the interface.
        ``folder``: the spool; by default below ``$XDG_STATE_HOME/edgemamba``. It holds patients' data until they are
        processed, readable by its owner only.
        ``max_mb``: the largest instance in MiB (1024). ``spool_mb``: what may wait, in MiB (20480).
        ``cert``, ``key``, ``ca``: TLS, see :func:`~edgemamba.runtime.dicom_network.tls.server_context`.

    Raises:
        SourceError: the URL is wrong, the port or the spool is in use.
        MissingExtraError: pynetdicom or pydicom is not installed.
    """
    require("pynetdicom", purpose="receiving DICOM")
    require("pydicom", purpose="reading DICOM files")
    address = parse_dimse(url, _OPTIONS, SourceError)
    options = address.options
    calling = tuple(title.strip() for title in options.get("allow", "").split(",") if title.strip())
    for title in calling:
        check_title(title, SourceError)
    networks = tuple(_network(text.strip()) for text in options.get("from", "").split(",") if text.strip())
    if not calling and not networks and not _is_loopback(address.host):
        LOGGER.warning("%s takes instances from whoever reaches it; name the senders with allow= and from=", address)
    max_bytes = int(number(options, "max_mb", _MAX_MB, SourceError) * (1 << 20))
    spool_bytes = int(number(options, "spool_mb", _SPOOL_MB, SourceError) * (1 << 20))
    folder = Path(options["folder"]).expanduser() if options.get("folder") else _default_folder(address)
    tls = server_context(options, SourceError)
    return DimseSource(address, folder, Rules(calling, networks, max_bytes), spool_bytes, voi, tls)


class DimseSource(Source):
    """The frames of instances as they are received; ends when it is closed, from any thread.

    An instance is acknowledged when it is on disk, and leaves the spool when it has been processed: when the next frame is
    asked for after its last one, or, with :attr:`confirmed` set, when :meth:`done` is called. What was received and not
    processed is given again at the next start, whether the process ended or was killed.

    It is not live in the sense of :class:`Source`: what nobody takes waits on disk and is not lost, so a stream must not drop
    any of it.

    Frames' timestamps are seconds since the first; those of a cine follow its own clock. Frames are named by the salted hash
    of their SOP Instance UID. What cannot be decoded after all is put aside in the spool, and counted.

    Args:
        address: own AE title, interface and port; with port 0 see :attr:`port`.
        folder: the spool.
        rules: who may send what.
        spool_bytes: what may wait.
        voi: how grey pictures are shown.
        tls: encrypt with this.

    Attributes:
        confirmed: set by a caller that says with :meth:`done` when a frame's result is safe.
        port: that is listened on.
    """

    def __init__(
        self,
        address: DimseAddress,
        folder: Path,
        rules: Rules,
        spool_bytes: int,
        voi: Voi = "auto",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(str(address))
        self.confirmed = False
        self._voi: Voi = voi
        self._closed = False
        self._lock = threading.Lock()
        self._given: deque[tuple[int, Path]] = deque()  # files given whole, by the index of their last frame
        self._spool = Spool(folder, spool_bytes, SourceError)
        try:
            self._receiver = Receiver(address, self._spool, rules, voi, tls)
        except BaseException:
            self._spool.close()
            raise
        self.port = self._receiver.port
        self.name = str(replace(address, port=self.port))

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        first: float | None = None
        clock = 0.0  # of the last frame given
        try:
            while not self._closed:
                path = self._spool.take(_TICK)
                if path is None:
                    continue
                now = time.monotonic()
                first = now if first is None else first
                start = max(now - first, clock)  # a cine may last longer than it took to arrive
                last: Frame | None = None  # held back until it is known whether another one follows
                try:
                    for frame in self._frames(path):
                        if last is not None:
                            yield last
                        clock = start + frame.timestamp
                        last = replace(frame, index=index, timestamp=clock)
                        index += 1
                except SourceError as error:
                    self.skipped.add(str(error))
                    index += 1
                if last is None:
                    self._spool.unreadable(path)
                    continue
                with self._lock:
                    self._given.append((last.index, path))
                yield last
                if not self.confirmed:
                    self.done(last)
        finally:
            self.close()

    def done(self, frame: Frame) -> None:
        """The results of ``frame`` and of all before it are safe: their instances leave the spool. Any thread may say so."""
        with self._lock:
            while self._given and self._given[0][0] <= frame.index:
                self._spool.done(self._given.popleft()[1])

    def interrupt(self) -> None:
        """End the iteration soon, whatever it waits for. Any thread may ask."""
        self._closed = True
        self._spool.wake()

    def close(self) -> None:
        """Stop listening; what waits stays in the spool. Any thread may close; closing twice is harmless."""
        self._closed = True
        self._receiver.close()
        self._spool.close()

    def describe(self) -> dict[str, Any]:
        """Also what was received, what was refused and why, and what waits."""
        waiting = {"waiting": len(self._spool), "recovered": self._spool.recovered}
        return {**super().describe(), **self._receiver.describe(), **waiting}

    def _frames(self, path: Path) -> Iterator[Frame]:
        """An instance's frames, named by its UID's hash, by which the spool calls it. The header's own UID may be damaged.

        Raises:
            SourceError: not one can be decoded.
        """
        name = self._spool.name_of(path)
        pictures = PictureSource([path], name, voi=self._voi)
        pictures.skipped = self.skipped
        for frame in pictures:
            yield replace(frame, source=name)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SourceError(f"from={text}: give addresses or networks such as 10.0.0.0/8") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_folder(address: DimseAddress) -> Path:
    """One spool for each AE title and port; the title may hold any sign that a file name may not."""
    title = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in address.ae_title)
    return state_folder() / "spool" / f"{title}-{address.port}"
