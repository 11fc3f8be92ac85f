"""Who may look: a token, or the machine itself."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.web.address import Address, is_loopback

__all__ = ["Access", "choose_token"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SHORTEST = 8
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")  # RFC 3986 section 2.3
_NEEDED = "A token is needed: open the address with ?token=... that edgemamba printed, or send it as a bearer token."
_FOREIGN = "This page is for this machine only: open it as localhost, or give edgemamba a token (--web-token)."


def choose_token(address: Address, given: str | None) -> str | None:
    """The token that visitors need: the one given; else none on the loopback and a random one elsewhere.

    Raises:
        SinkError: the given one is too short to keep anyone out, or has signs that a URL or a cookie cannot carry.
    """
    if given is not None:
        if len(given) < _SHORTEST:
            raise SinkError(f"the web token has {len(given)} characters; {_SHORTEST} or more are needed")
        if not _UNRESERVED.fullmatch(given):
            raise SinkError("the web token may have letters, digits and -._~ only, for it is part of a URL")
        return given
    return None if address.is_loopback else secrets.token_urlsafe(24)


class Access:
    """ASGI middleware that lets in who has the token; without a token, who calls this machine by its own name.

    A browser sends the token once, as ``?token=``, and has it in a cookie afterwards; programs send ``Authorization: Bearer``.
    The names are checked because a web page from elsewhere can make its name point here (DNS rebinding).
    """

    def __init__(self, app: App, token: str | None, port: int) -> None:
        self._app = app
        self._token = token
        self._cookie = f"edgemamba-{port}"  # cookies are shared between the ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is None:
            if is_loopback(_host(headers.get(b"host", ""))):
                await self._app(scope, receive, send)
            else:
                await _answer(send, 403, _FOREIGN)
            return
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if self._is_token(query.get("token", [""])[0]):
            if scope["path"] == "/":  # out of the address bar, the history, and the referrer
                cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Lax"
                await _answer(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode("latin-1"))])
            else:
                await self._app(scope, receive, send)
        elif self._is_token(self._from(headers)):
            await self._app(scope, receive, send)
        else:
            await _answer(send, 401, _NEEDED, [(b"www-authenticate", b"Bearer")])

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _from(self, headers: dict[bytes, str]) -> str:
        kind, _, bearer = headers.get(b"authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return bearer.strip()
        try:
            cookies = SimpleCookie(headers.get(b"cookie", ""))
        except CookieError:
            return ""
        return cookies[self._cookie].value if self._cookie in cookies else ""


def _host(header: str) -> str:
    """The Host header's name without its port, and an IPv6 address without its brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


async def _answer(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = text.encode()
    fixed = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": [*fixed, *(headers or [])]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
