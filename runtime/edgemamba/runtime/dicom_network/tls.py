"""TLS for C-STORE (PS3.15 B): the options ``cert``, ``key``, ``ca`` and ``tls`` of ``dimse://`` URIs.

Python's defaults are the profile: TLS 1.2 or 1.3 (BCP 195), no renegotiation, no compression.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from edgemamba.runtime.errors import EdgeMambaError

__all__ = ["CLIENT_OPTIONS", "SERVER_OPTIONS", "client_context", "server_context"]

SERVER_OPTIONS = ("ca", "cert", "key")
CLIENT_OPTIONS = ("ca", "cert", "key", "tls")


def server_context(options: Mapping[str, str], error: type[EdgeMambaError]) -> ssl.SSLContext | None:
    """For a receiver; None where TLS is not asked for.

    Options:
        ``cert``: our certificate (PEM, with those that lead to its authority). ``key``: its private key, if it is not in the
        same file. ``ca``: only peers with a certificate by one of these authorities may connect.

    Raises:
        error: a file is missing or of no use, or ``cert`` is.
    """
    if not any(options.get(name) for name in SERVER_OPTIONS):
        return None
    if not options.get("cert"):
        raise error("a receiver with TLS needs a certificate: cert=FILE, and key=FILE for its private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_own(context, options, error)
    if options.get("ca"):
        _load_authorities(context, options, error)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(options: Mapping[str, str], error: type[EdgeMambaError]) -> ssl.SSLContext | None:
    """For a sender; None where TLS is not asked for. The peer's certificate must be valid, and for the host that was named.

    Options:
        ``tls=1``: encrypt, and trust the system's authorities. ``ca``: trust these instead. ``cert``, ``key``: ours, for a
        peer that asks for one. Each of them implies ``tls``.

    Raises:
        error: a file is missing or of no use.
    """
    if options.get("tls", "0") in ("0", "") and not any(options.get(name) for name in SERVER_OPTIONS):
        return None
    context = ssl.create_default_context() if not options.get("ca") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.get("ca"):
        _load_authorities(context, options, error)
    if options.get("cert") or options.get("key"):
        _load_own(context, options, error)
    return context


def _load_own(context: ssl.SSLContext, options: Mapping[str, str], error: type[EdgeMambaError]) -> None:
    certificate = _file(options, "cert", error)
    key = _file(options, "key", error) if options.get("key") else certificate
    try:
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as reason:
        raise error(
            f"cert={certificate}, key={key}: no certificate (PEM) with its unencrypted private key ({_short(reason)})"
        ) from None


def _load_authorities(context: ssl.SSLContext, options: Mapping[str, str], error: type[EdgeMambaError]) -> None:
    path = _file(options, "ca", error)
    try:
        context.load_verify_locations(path)
    except OSError as reason:
        raise error(f"ca={path}: no certificates (PEM) in it ({_short(reason)})") from None


def _file(options: Mapping[str, str], name: str, error: type[EdgeMambaError]) -> Path:
    path = Path(options.get(name, "")).expanduser()
    if not path.is_file():
        raise error(f"{name}={path} is no file")
    return path


def _short(reason: Exception) -> str:
    return str(getattr(reason, "reason", None) or getattr(reason, "strerror", None) or type(reason).__name__)
