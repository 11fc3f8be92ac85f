"""A DICOMweb service (PS3.18): searching and storing through dicomweb-client, instances streamed to disk, retries.

dicomweb-client holds a whole response in memory, so instances are fetched with a request of our own on its session. Messages
name neither credentials nor studies.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from edgemamba.runtime.dicom_network.addresses import WebAddress
from edgemamba.runtime.dicom_network.quiet import quiet
from edgemamba.runtime.extras import require

LOGGER = logging.getLogger("edgemamba.runtime")
T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0
_ATTEMPTS = 5
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
_CHUNK = 1 << 16
_LARGEST_ANSWER = 64 << 20  # of a search
_LONGEST_HEADER = 1 << 14  # of a part in a multipart message
# Answers after which the same request may succeed.
_PASSING = (408, 425, 429, 502, 503, 504)


class UnavailableError(Exception):
    """The service did not answer, or kept saying that it cannot now."""


class RefusedError(Exception):
    """The service will not do this one thing; ``status`` is its HTTP answer, or 0 where the answer is no DICOMweb."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class WebService:
    """A service that is asked again, with back-off and jitter, when it does not answer.

    Credentials are the address's; or the bearer token of ``EDGEMAMBA_DICOMWEB_TOKEN``. They are sent over plain HTTP too,
    with a warning where that leaves this machine.

    Args:
        address: of the service.
        timeout: seconds that it may be silent.
        ca: certificates (PEM) to trust instead of the system's.
        attempts: how often a request is made before it counts as failed.

    Raises:
        MissingExtraError: dicomweb-client is not installed.
    """

    def __init__(
        self, address: WebAddress, timeout: float = 30.0, ca: Path | None = None, attempts: int = _ATTEMPTS
    ) -> None:
        web = require("dicomweb_client.web", purpose="DICOMweb")
        self._requests = require("requests", purpose="DICOMweb")
        self.address = address
        self._attempts = attempts
        self._timeout = (_CONNECT_TIMEOUT, timeout)
        self._stopped = threading.Event()
        self._session = _session(self._requests)
        self._session.auth = self._authentication(address)
        if ca is not None:
            self._session.verify = str(ca)
        self.client = web.DICOMwebClient(address.service, session=self._session, timeout=self._timeout)
        self.client.set_http_retry_params(False)  # ours cover connections that fail as well
        quiet("dicomweb_client")
        quiet("pydicom")

    def ask(self, request: Callable[[], T]) -> T:
        """Run a request that uses :attr:`client` or the session, and again where that may help.

        Raises:
            UnavailableError: the service does not answer, wants other credentials, or :meth:`stop` was called.
            RefusedError: it refuses this request, or answers what is no DICOMweb.
        """
        errors = self._requests.exceptions
        for attempt in range(1, self._attempts + 1):
            try:
                return request()
            except errors.HTTPError as error:
                status = error.response.status_code
                reason = f"HTTP {status} {error.response.reason}"
                if status in (401, 403):
                    raise UnavailableError(
                        f"{reason}: give user:password@ or EDGEMAMBA_DICOMWEB_USER and _PASSWORD"
                    ) from None
                if status not in _PASSING:
                    raise RefusedError(reason, status) from None
            except errors.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise UnavailableError(
                        "its certificate is not trusted; name the authority's with ca=FILE"
                    ) from None
                raise UnavailableError("it does not speak TLS as we do; is it dicomweb://?") from None
            except errors.Timeout:
                reason = "it does not answer in time"
            except (errors.ConnectionError, errors.ChunkedEncodingError):
                reason = "the connection fails"
            except (errors.RequestException, ValueError, KeyError) as error:
                raise RefusedError(f"the answer is no DICOMweb ({type(error).__name__})") from None
            if attempt < self._attempts:
                wait = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.5)
                if self._stopped.wait(wait):
                    raise UnavailableError("stopped")
        raise UnavailableError(f"{reason} ({self._attempts} attempts)")

    def search(self, request: Callable[[], Any]) -> list[Any]:
        """:meth:`ask` for the list that a search answers with.

        Raises:
            UnavailableError, RefusedError: see :meth:`ask`.
        """
        answer = self.ask(request)
        if not isinstance(answer, list):
            raise RefusedError("the answer is no DICOMweb (no list)")
        return answer

    def fetch(self, study: str, series: str, instance: str, path: Path, max_bytes: int) -> None:
        """Write one instance, as it is stored there, to a file (WADO-RS).

        Raises:
            UnavailableError: see :meth:`ask`.
            RefusedError: it is not served, is no DICOM file, or is larger than ``max_bytes``.
        """
        url = f"{self.address.service}/studies/{study}/series/{series}/instances/{instance}"
        headers = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}

        def get() -> None:
            with self._session.get(url, headers=headers, stream=True, timeout=self._timeout) as response:
                response.raise_for_status()
                kind = response.headers.get("Content-Type", "")
                pieces = response.iter_content(_CHUNK)
                if kind.lower().startswith("multipart/"):
                    pieces = first_part(pieces, _boundary(kind))
                with path.open("wb") as file:
                    _copy(pieces, file, max_bytes)

        self.ask(get)

    def stop(self) -> None:
        """Wait for no further attempt. Any thread may call."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connections."""
        self.stop()
        self._session.close()

    def _authentication(self, address: WebAddress) -> Any:
        token = os.environ.get("EDGEMAMBA_DICOMWEB_TOKEN")
        if address.credentials is None and not token:
            return None
        if address.service.startswith("http:") and not _is_loopback(address.service):
            LOGGER.warning("%s: credentials are sent unencrypted; use dicomwebs://", address)
        if address.credentials is not None:
            user, password = (text.encode() for text in address.credentials)
            return self._requests.auth.HTTPBasicAuth(user, password)
        return _Bearer(str(token))


class _Bearer:
    """Authentication with a token (RFC 6750)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _session(requests: Any) -> Any:
    class Session(requests.Session):  # type: ignore[misc, name-defined]
        """Lets requests name the host, for dicomweb-client leaves out the port and cannot tell IPv6 addresses; and bounds
        the answers that dicomweb-client takes whole."""

        def request(self, *args: Any, **options: Any) -> Any:
            (options.get("headers") or {}).pop("Host", None)
            if self.verify is not True:  # given here, it goes before REQUESTS_CA_BUNDLE
                options["verify"] = self.verify
            streamed = bool(options.pop("stream", False))
            response = super().request(*args, stream=True, **options)
            if not streamed:
                _read(response)
            return response

    return Session()


def _read(response: Any) -> None:
    """Take in the body of an answer that the caller wants whole, up to a limit."""
    body = bytearray()
    with response:
        for piece in response.iter_content(_CHUNK):
            body += piece
            if len(body) > _LARGEST_ANSWER:
                raise RefusedError(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
    response._content = bytes(body)  # where requests itself puts it


def first_part(pieces: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """The body of the first part of a multipart message (RFC 2046), without holding more than a few pieces of it.

    Raises:
        ValueError: the message is none, or ends before the part does.
    """
    delimiter = b"--" + boundary
    held = b""
    for piece in pieces:
        held += piece
        start = held.find(delimiter)
        end = held.find(b"\r\n\r\n", start)
        if start >= 0 and end >= 0:
            held = held[end + 4 :]
            break
        if len(held) > _LONGEST_HEADER + _CHUNK:
            raise ValueError("no part")
    else:
        raise ValueError("no part")
    delimiter = b"\r\n" + delimiter
    while (end := held.find(delimiter)) < 0:
        keep = len(delimiter) - 1
        yield held[:-keep]
        held = held[-keep:]
        piece = next(pieces, b"")
        if not piece:
            raise ValueError("the part has no end")
        held += piece
    yield held[:end]


def _copy(pieces: Iterator[bytes], file: BinaryIO, max_bytes: int) -> None:
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > max_bytes:
            raise RefusedError(f"it is larger than {max_bytes >> 20} MiB (max_mb)")
        file.write(piece)


def _boundary(kind: str) -> bytes:
    match = re.search(r'boundary=(?:"([^"]+)"|([^\s;]+))', kind, re.IGNORECASE)
    if match is None:
        raise ValueError("no boundary")
    return (match[1] or match[2]).encode("latin-1")


def _is_loopback(service: str) -> bool:
    host = urlsplit(service).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
