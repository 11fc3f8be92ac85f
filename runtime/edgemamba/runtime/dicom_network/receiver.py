"""A storage SCP: C-STORE into a spool folder, C-ECHO, for the AE titles and addresses that are allowed (PS3.4 B, A)."""

from __future__ import annotations

import errno
import ipaddress
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from edgemamba.runtime.dicom_network.addresses import DimseAddress
from edgemamba.runtime.dicom_network.quiet import quiet
from edgemamba.runtime.dicom_network.spool import Part, Spool
from edgemamba.runtime.dicom_pixels import DicomImage, Voi
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.privacy import hashed

LOGGER = logging.getLogger("edgemamba.runtime")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# C-STORE responses (PS3.4 B.2.3).
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
# Associations at once. Further ones are rejected as "local limit exceeded", which a client takes as "try again".
MOST_ASSOCIATIONS = 64
_REFUSALS_TOLD = 20
# Seconds until an A-ASSOCIATE-RQ must have come; without traffic on an association; for a PDU to arrive.
_ASSOCIATE_TIMEOUT, _IDLE_TIMEOUT, _PDU_TIMEOUT = 15.0, 60.0, 30.0


@dataclass(frozen=True)
class Rules:
    """Who may send what.

    Attributes:
        calling: AE titles that may call; empty: any.
        networks: addresses that may connect; empty: any.
        max_bytes: of one instance.
    """

    calling: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    max_bytes: int = 1 << 30

    def admits(self, address: str) -> bool:
        """Whether a peer at this IP address may connect."""
        if not self.networks:
            return True
        peer = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.networks)


@dataclass
class Counts:
    """What a receiver has seen since it started. Written under its lock."""

    associations: int = 0
    received: int = 0
    refused_address: int = 0
    refused_title: int = 0
    refused_busy: int = 0
    refused_size: int = 0
    refused_full: int = 0
    refused_unreadable: int = 0
    garbage: int = 0


@dataclass
class _Peer:
    """What is known of an open connection."""

    address: str
    asked: bool = False
    reasons: list[str] = field(default_factory=list)


class Receiver:
    """Listens until :meth:`close`.

    An instance is acknowledged (status 0000H) once its bytes and its name are on disk and its header can be decoded into
    frames. It is refused with A700H where there is no room for it, with C000H where it is no picture that can be decoded, and
    by aborting the association as soon as it is larger than allowed.

    Args:
        address: own AE title, and the interface and port to listen on; port 0 takes a free one, see :attr:`port`.
        spool: where instances go.
        rules: who may send what.
        voi: with which an instance must be decodable.
        tls: encrypt with this; see :mod:`edgemamba.runtime.dicom_network.tls`.

    Raises:
        SourceError: the port is in use, or the address is not this machine's.
        MissingExtraError: pynetdicom is not installed.
    """

    def __init__(
        self, address: DimseAddress, spool: Spool, rules: Rules, voi: Voi = "auto", tls: ssl.SSLContext | None = None
    ) -> None:
        pynetdicom = require("pynetdicom", purpose="receiving DICOM")
        self._spool = spool
        self._rules = rules
        self._voi: Voi = voi
        self._lock = threading.Lock()
        self._peers: dict[Any, _Peer] = {}
        self.counts = Counts()
        quiet("pynetdicom")
        quiet("pydicom")
        entity = pynetdicom.AE(ae_title=address.ae_title)
        entity.maximum_associations = MOST_ASSOCIATIONS
        entity.require_called_aet = True
        entity.require_calling_aet = list(rules.calling)
        entity.acse_timeout = _ASSOCIATE_TIMEOUT
        entity.dimse_timeout = entity.network_timeout = _IDLE_TIMEOUT
        entity.supported_contexts = storage_contexts()
        entity.add_supported_context("1.2.840.10008.1.1")  # Verification
        event = pynetdicom.evt
        handlers = [
            (event.EVT_CONN_OPEN, self._opened),
            (event.EVT_REQUESTED, self._requested),
            (event.EVT_REJECTED, self._rejected),
            (event.EVT_ACCEPTED, self._accepted),
            (event.EVT_C_STORE, self._store),
        ]
        try:
            self._server = entity.make_server(
                (address.host, address.port), evt_handlers=handlers, server_class=_server_class(self._admit, tls)
            )
        except OSError as error:
            remedy = (
                "is another receiver running?" if error.errno == errno.EADDRINUSE else "give an address of this machine"
            )
            raise SourceError(f"{address} cannot listen: {error.strerror or error}; {remedy}") from None
        entity._servers.append(self._server)  # its shutdown expects to be there, as after AE.start_server()
        self.port = int(self._server.server_address[1])
        self._thread: threading.Thread | None = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="edgemamba-dimse", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and abort what is open; closing twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        for association in self._server.active_associations:
            association.abort(block=False)
        self._server.shutdown()
        thread.join(5)

    def describe(self) -> dict[str, int]:
        """The counts, JSON-able."""
        with self._lock:
            return asdict(self.counts)

    # ------------------------------------------------------------------------------------------------------ connections

    def _admit(self, address: str) -> bool:
        if not self._rules.admits(address):
            self._refuse("refused_address", f"a connection from {address}, which from= does not allow")
            return False
        with self._lock:
            crowded = len(self._peers) >= 2 * MOST_ASSOCIATIONS  # room to reject some in good form
        if crowded:
            self._refuse("refused_busy", f"a connection from {address}: {2 * MOST_ASSOCIATIONS} are open")
        return not crowded

    def _opened(self, event: Any) -> None:
        from edgemamba.runtime.dicom_network.reception import SpoolingProvider, bounded_recv, forgiving_action, with_end

        association = event.assoc
        with self._lock:
            self._peers[association] = _Peer(str(event.address[0]))
        association.dimse = SpoolingProvider(association, self._spool, self._rules.max_bytes, self._over_limit)
        association.dul.socket.recv = bounded_recv(association, _PDU_TIMEOUT)
        association.dul.state_machine.do_action = forgiving_action(association)
        association.run = with_end(association, lambda: self._ended(association))

    def _requested(self, event: Any) -> None:
        with self._lock:
            self._peers[event.assoc].asked = True

    def _accepted(self, event: Any) -> None:
        with self._lock:
            self.counts.associations += 1

    def _rejected(self, event: Any) -> None:
        requestor = event.assoc.requestor
        calling, called = _shown(requestor.ae_title), _shown(requestor.primitive.called_ae_title)
        if called != event.assoc.acceptor.ae_title.strip():
            self._refuse("refused_title", f"an association from {calling}, which calls us {called}")
        elif self._rules.calling and calling not in self._rules.calling:
            self._refuse("refused_title", f"an association from {calling}, which allow= does not name")
        else:
            self._refuse("refused_busy", f"an association from {calling}: {MOST_ASSOCIATIONS} are open")

    def _ended(self, association: Any) -> None:
        association.dimse.release()
        with self._lock:
            peer = self._peers.pop(association, None)
        if peer is not None and not peer.asked:
            self._refuse("garbage", f"a connection from {peer.address} that asked for no DICOM association")

    def _over_limit(self, association: Any, reason: str) -> None:
        name = "refused_size" if "max_mb" in reason else "garbage"
        self._refuse(name, f"{reason} from {_shown(association.requestor.ae_title)}")

    # -------------------------------------------------------------------------------------------------------- instances

    def _store(self, event: Any) -> int:
        """Answer a C-STORE whose data set lies in a part of the spool."""
        uid = str(event.request.AffectedSOPInstanceUID)
        part: Part = event.request._dataset_file.part
        part.sync()
        if part.failure is None:
            try:
                # Only what can be decoded is ours to acknowledge; its frames are decoded when their turn comes.
                DicomImage(part.path, self._voi).close()
            except SourceError as error:
                reason = str(error).removeprefix(f"{part.path}: ")
                self._refuse("refused_unreadable", f"{hashed(uid)}: {reason}")
                return _CANNOT_UNDERSTAND
            try:
                part.keep(uid)
            except OSError as error:
                part.failure = (error.strerror or str(error)).lower()
        if part.failure is not None:
            self._refuse("refused_full", f"{hashed(uid)}: {part.failure}")
            return _OUT_OF_RESOURCES
        with self._lock:
            self.counts.received += 1
        return _SUCCESS

    def _refuse(self, name: str, what: str) -> None:
        with self._lock:
            count = getattr(self.counts, name) + 1
            setattr(self.counts, name, count)
        # A peer that is refused for days must not fill the log: after 20 of a kind only the 32nd, 64th, 128th ...
        if count <= _REFUSALS_TOLD:
            LOGGER.warning("refused: %s", what)
        elif count & (count - 1) == 0:
            LOGGER.warning("refused: %s; %d of this kind so far", what, count)


def storage_contexts() -> list[Any]:
    """Presentation contexts of the storage of images, in every transfer syntax that can be decoded here.

    Objects without pixels (reports, presentation states) are refused when the association is negotiated, so that their sender
    knows.
    """
    pynetdicom = require("pynetdicom", purpose="receiving DICOM")
    pixels = require("pydicom.pixels", purpose="receiving DICOM")
    syntaxes = []
    for syntax in require("pydicom.uid").AllTransferSyntaxes:
        try:
            if pixels.get_decoder(syntax).is_available:
                syntaxes.append(syntax)
        except NotImplementedError:
            continue
    contexts = []
    for context in pynetdicom.AllStoragePresentationContexts:
        name = str(context.abstract_syntax.name)
        if "Image" in name and "Storage" in name:
            contexts.append(pynetdicom.build_context(context.abstract_syntax, syntaxes))
    return contexts


def _server_class(admit: Callable[[str], bool], tls: ssl.SSLContext | None) -> type[Any]:
    """A threaded server that asks ``admit`` before it speaks with anyone, encrypted where there is ``tls``."""
    from pynetdicom.transport import ThreadedAssociationServer

    class Server(ThreadedAssociationServer):
        request_queue_size = 2 * MOST_ASSOCIATIONS
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            if tls is not None:
                # The handshake comes with the first bytes that are read, in the association's own thread and time: pynetdicom's
                # own, here, would have all others wait for a client that stays silent.
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return admit(str(client_address[0]))

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A connection that ended before it began is no reason for a traceback."""

    return Server


def _shown(title: Any) -> str:
    """An AE title from the network, fit for a log."""
    return str(title).strip().encode("ascii", "replace").decode()[:16]
