"""Sending by C-STORE (PS3.4 B)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from edgemamba.runtime.dicom_network.addresses import OWN_TITLE, DimseAddress
from edgemamba.runtime.dicom_network.outbox import LaterError, NeverError, Sender
from edgemamba.runtime.dicom_network.quiet import quiet
from edgemamba.runtime.extras import require

# What we write: Secondary Capture Image Storage, Comprehensive SR Storage.
_CLASSES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33")
_CONNECT_TIMEOUT, _ANSWER_TIMEOUT = 10.0, 60.0
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_WARNINGS = range(0xB000, 0xC000)


class DimseSender(Sender):
    """A storage SCU that keeps its association while objects wait.

    Args:
        address: the peer's AE title, host and port.
        calling: our AE title.
        tls: encrypt with this; the peer's certificate must be for the address's host.

    Raises:
        MissingExtraError: pynetdicom is not installed.
    """

    def __init__(self, address: DimseAddress, calling: str = OWN_TITLE, tls: ssl.SSLContext | None = None) -> None:
        pynetdicom = require("pynetdicom", purpose="sending DICOM")
        quiet("pynetdicom")
        self.name = str(address)
        self._address = address
        self._tls = None if tls is None else (tls, address.host)
        self._entity = pynetdicom.AE(ae_title=calling)
        self._entity.connection_timeout = _CONNECT_TIMEOUT
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = _ANSWER_TIMEOUT
        for uid in _CLASSES:
            self._entity.add_requested_context(uid)
        self._association: Any = None

    def send(self, path: Path) -> None:
        association = self._connected()
        try:
            status = association.send_c_store(path).get("Status")
        except ValueError:
            raise NeverError("it takes no objects of this kind") from None
        except RuntimeError:
            status = None
        if status is None:
            self.rest()
            raise LaterError("the association broke")
        if status == 0x0000 or status in _WARNINGS:
            return
        if status in _OUT_OF_RESOURCES:
            raise LaterError(f"status {status:04X}H, out of resources")
        raise NeverError(f"status {status:04X}H")

    def rest(self) -> None:
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _connected(self) -> Any:
        if self._association is not None and self._association.is_established:
            return self._association
        address = self._address
        association = self._entity.associate(address.host, address.port, ae_title=address.ae_title, tls_args=self._tls)
        if not association.is_established:
            why = "it rejects the association" if association.is_rejected else "it does not answer"
            raise LaterError(why)
        self._association = association
        return association
