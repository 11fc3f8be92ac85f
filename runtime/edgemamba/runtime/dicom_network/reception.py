"""What arrives on one association: bounded while it arrives, and written to the spool instead of gathered in memory.

pynetdicom gathers a whole data set in memory (or in the system's temporary folder) before it asks the service class. Here the
DIMSE provider of each association is replaced, by the time the connection opens, with one that opens a
:class:`~edgemamba.runtime.dicom_network.spool.Part` as soon as the command of a C-STORE is complete, and that aborts the
association when a limit is passed, not when everything has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pydicom.filewriter import write_file_meta_info
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dsutils import create_file_meta
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA

from edgemamba.runtime.dicom_network.spool import Part, Spool

_LARGEST_COMMAND = 1 << 16  # bytes of a command set; real ones take some hundred
_LARGEST_OTHER = 1 << 20  # of the data set of a request that is no C-STORE; none of those is answered
_MOST_PARTS = 4  # C-STORE requests sent ahead without waiting for the answer, which nobody negotiated
_LARGEST_PDU = 1 << 18  # well above what we announce, and above the longest A-ASSOCIATE-RQ seen


class PartFile:
    """A :class:`Part` in the guise of the temporary file that pynetdicom writes data sets to."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.name = str(part.path)
        self.file = self  # pynetdicom flushes the file behind its file

    def write(self, data: bytes) -> int:
        return self.part.write(data)

    def tell(self) -> int:
        return self.part.size

    def flush(self) -> None:
        """Data are synced once, when they are whole."""

    def close(self) -> None:
        """The handler has kept the part or discarded it."""
        self.part.discard()


class SpoolingProvider(DIMSEServiceProvider):
    """The DIMSE provider of one association.

    Args:
        association: that it serves.
        spool: where data sets go.
        max_bytes: of one data set.
        refused: called with the reason when a limit makes it abort the association.
    """

    def __init__(self, association: Any, spool: Spool, max_bytes: int, refused: Callable[[Any, str], None]) -> None:
        super().__init__(association)
        self._spool = spool
        self._max_bytes = max_bytes
        self._refused = refused
        self._received = 0  # bytes of the current data set, or of the current command
        self._parts: list[Part] = []
        self._over = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take what came in one P-DATA-TF PDU, piece by piece."""
        for context, data in primitive.presentation_data_value_list:
            if self._over:
                return
            try:
                one: Any = P_DATA()
                one.presentation_data_value_list = [[context, data]]
                if reason := self._too_much(data):
                    self._abort(reason)
                    return
                super().receive_primitive(one)
                if data[0] & 1 and data[0] & 2:
                    self._received = 0
                    self._divert(context)
            except Exception as error:  # whatever a hostile peer's bytes made pynetdicom do
                self._abort(f"a message that cannot be read ({type(error).__name__})")
                return
            if self.message is None:
                self._received = 0

    def release(self) -> None:
        """The connection is gone: delete what did not become an instance."""
        for part in self._parts:
            part.discard()
        self._parts.clear()

    def _too_much(self, data: bytes) -> str | None:
        """Whether this piece passes a limit, and which."""
        self._received += len(data) - 1
        if data[0] & 1:
            return "a command of more than 64 KiB" if self._received > _LARGEST_COMMAND else None
        if isinstance(self.message, C_STORE_RQ):
            if self._received > self._max_bytes:
                return f"an instance larger than {self._max_bytes >> 20} MiB (max_mb)"
            return None
        return "a data set with a request that takes none" if self._received > _LARGEST_OTHER else None

    def _divert(self, context_id: int) -> None:
        """A command is complete: if it announces an instance, open the file that it goes to."""
        message: Any = self.message
        if not isinstance(message, C_STORE_RQ):
            return
        self._parts = [part for part in self._parts if part.path.exists()]
        if len(self._parts) >= _MOST_PARTS:
            raise OverflowError("requests sent ahead")
        context = next(item for item in self.assoc.accepted_contexts if item.context_id == context_id)
        command = message.command_set
        part = self._spool.begin()
        self._parts.append(part)
        file: Any = PartFile(part)
        part.write(b"\0" * 128 + b"DICM")
        meta = create_file_meta(
            sop_class_uid=command.AffectedSOPClassUID,
            sop_instance_uid=command.AffectedSOPInstanceUID,
            transfer_syntax=context.transfer_syntax[0],
        )
        write_file_meta_info(file, meta)
        message._data_set_file = file
        message._data_set_path = part.path

    def _abort(self, reason: str) -> None:
        self._over = True
        self.release()
        self._refused(self.assoc, reason)
        self.assoc.abort(block=False)


def forgiving_action(association: Any) -> Callable[[str], None]:
    """A replacement for the state machine's ``do_action`` that ends the association where pynetdicom's own leaves it hanging.

    Where an event fits no state (both sides abort at the same moment) the connection is closed, instead of the thread dying
    with the socket open. Where the connection ends before an association was asked for, the association's thread is told,
    instead of waiting on for the request until its time is up.
    """
    dul = association.dul
    original = dul.state_machine.do_action

    def do_action(event: str) -> None:
        try:
            original(event)
        except InvalidEventError:
            dul.kill_dul()
            if dul.socket is not None:
                dul.socket.close()
        over = dul._kill_thread or dul.state_machine.current_state in ("Sta1", "Sta13")
        if over and association.requestor.primitive is None:
            dul.to_user_queue.put(None)

    return do_action


def with_end(association: Any, ended: Callable[[], None]) -> Callable[[], None]:
    """A replacement for the association thread's ``run`` that calls ``ended`` when all is over, however it came to that.

    pynetdicom's event of a closed connection does not come in every case.
    """
    original = association.run

    def run() -> None:
        try:
            original()
        finally:
            ended()

    return run


def bounded_recv(association: Any, timeout: float) -> Callable[[int], bytearray]:
    """A replacement for the association socket's ``recv`` that reads no PDU beyond a limit, nor for longer than ``timeout``.

    pynetdicom's own reads as many bytes as a PDU's header promises, up to 4 GiB, and waits for each of them anew.
    """
    wrapper = association.dul.socket

    def recv(count: int) -> bytearray:
        if count > _LARGEST_PDU:
            raise OSError(f"a PDU of {count} bytes")
        connection = wrapper.socket
        if connection is None:
            raise OSError("the connection is closed")
        data = bytearray()
        deadline = time.monotonic() + timeout
        try:
            while len(data) < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"a PDU that takes more than {timeout:g} s")
                connection.settimeout(left)
                piece = connection.recv(min(count - len(data), 1 << 16))
                if not piece:
                    break
                data += piece
        finally:
            connection.settimeout(timeout)  # for what is sent: a peer that does not read must not hold us either
        return data

    return recv
