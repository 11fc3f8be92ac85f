"""Sending by STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

from pathlib import Path

from edgemamba.runtime.dicom_network.outbox import LaterError, NeverError, Sender
from edgemamba.runtime.dicom_network.web import RefusedError, UnavailableError, WebService
from edgemamba.runtime.extras import require


class StowSender(Sender):
    """Stores objects in a DICOMweb service, one a request, so that each has an answer of its own.

    Args:
        service: to which; closed with the sender. Attempts are the outbox's business: give it a service that makes one.
    """

    def __init__(self, service: WebService) -> None:
        self.name = str(service.address)
        self._service = service

    def send(self, path: Path) -> None:
        dataset = require("pydicom", purpose="sending DICOM").dcmread(path)
        try:
            answer = self._service.ask(lambda: self._service.client.store_instances([dataset]))
        except UnavailableError as error:
            raise LaterError(str(error)) from None
        except RefusedError as error:
            if error.status >= 500:
                raise LaterError(str(error)) from None
            raise NeverError(str(error)) from None
        failures = answer.get("FailedSOPSequence") or []
        if failures:
            reason = int(failures[0].get("FailureReason") or 0)
            raise NeverError(f"failure reason {reason:04X}H")
