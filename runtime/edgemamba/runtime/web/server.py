"""uvicorn in a thread of its own, with bounds on what a client can hold."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.web.access import Access, App, choose_token
from edgemamba.runtime.web.address import Address

__all__ = ["WebServer"]

# Clients at a time; more are hung up on. Each takes a file descriptor, of which the stream needs some itself.
_CONNECTIONS = 64
# So many wait to be let in; asyncio lets them in all at once, and only then can any be hung up on.
_BACKLOG = 16
# Seconds within which a connection must have finished a request: whoever sends or reads more slowly is hung up on. A page that
# waits for the next frame is answered within 10.
_PATIENCE = 30.0
_STARTING = 10.0
_STOPPING = 5.0


class WebServer:
    """Listens at once, serves from :meth:`start` to :meth:`stop`.

    Args:
        address: where.
        token: what visitors must know; None: nothing on the loopback, else a random one (see :attr:`url`).

    Raises:
        SinkError: the address cannot be listened on.
    """

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.token = choose_token(address, token)
        self._socket = _listen(address)
        self.address = Address(address.host, self._socket.getsockname()[1])
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it, with the token."""
        return self._with_token(self.address.url)

    @property
    def url_elsewhere(self) -> str | None:
        """Where a browser on another machine finds it, if that has another name; with the token."""
        url = self.address.url_elsewhere
        return None if url is None else self._with_token(url)

    def _with_token(self, url: str) -> str:
        return f"{url}?token={self.token}" if self.token else url

    def start(self, app: App) -> None:
        """Serve an ASGI application, behind the token.

        Raises:
            SinkError: the server did not come up.
        """
        uvicorn = require("uvicorn", purpose="the web page")
        config = uvicorn.Config(
            Access(app, self.token, self.address.port),
            http=_bounded_protocol(),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",  # what strangers send is no news
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="edgemamba-web", daemon=True
        )
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_STARTING / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        raise SinkError(f"the web server at {self.address.url} did not start")

    def stop(self) -> None:
        """Hang up and free the port; stopping twice is harmless."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOPPING)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_STOPPING)
            self._thread = None
        self._socket.close()


def _listen(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server(where[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = "is in use" if error.errno in _IN_USE else f"cannot be listened on: {error.strerror or error}"
        raise SinkError(f"port {address.port} of {address.host} {reason}; choose another address") from None


_IN_USE = {48, 98, 10048}  # EADDRINUSE of macOS, Linux, Windows


def _bounded_protocol() -> type:
    """uvicorn's HTTP/1.1 protocol, which hangs up on crowds and on clients that do not get on.

    uvicorn itself bounds neither the time in which a request comes nor that in which its answer is read.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class BoundedProtocol(H11Protocol):
        _answered = 0.0
        _check: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > _CONNECTIONS:
                transport.abort()
                return
            self._answered = self.loop.time()
            self._check = self.loop.call_later(_PATIENCE, self._hang_up)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._check is not None:
                self._check.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._answered = self.loop.time()
            super().on_response_complete()

        def _hang_up(self) -> None:
            left = self._answered + _PATIENCE - self.loop.time()
            if left <= 0:
                self.transport.abort()
            else:
                self._check = self.loop.call_later(left, self._hang_up)

    return BoundedProtocol
