"""Where a server listens: ``[HOST:]PORT``."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from edgemamba.runtime.errors import SinkError

__all__ = ["LOOPBACK", "Address", "parse_address"]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """A host name or IP address (IPv6 without brackets) and a TCP port; port 0: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """The root's URL; one that listens on all addresses is named by the loopback's."""
        return self._url({"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host))

    @property
    def url_elsewhere(self) -> str | None:
        """What other machines call it, where it listens on all addresses: by this machine's name."""
        return self._url(socket.gethostname()) if self.host in ("0.0.0.0", "::") else None

    def _url(self, host: str) -> str:
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"


def is_loopback(host: str) -> bool:
    """Whether a host names this machine and no other: ``localhost``, 127.0.0.0/8, ``::1``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Read ``8080``, ``:8080``, ``0.0.0.0:8080``, ``localhost:8080`` or ``[::1]:8080``. Without a host: the loopback.

    Raises:
        SinkError: it is none of these.
    """
    host, _, port = text.strip().strip("/").rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isascii() or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise SinkError(f"{text!r} is no address to listen on; give [HOST:]PORT, as 8080 or 0.0.0.0:8080")
    return Address(bare or LOOPBACK, int(port))
