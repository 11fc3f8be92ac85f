"""Names for logs and de-identified objects: a salted hash, which only the holder of the salt can link to the instance."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from edgemamba.runtime.dicom_network.addresses import state_folder

_LENGTH = 16  # hexadecimal digits: 64 bits, so that a million instances stay apart


def pseudonym(identifier: str) -> str:
    """16 hexadecimal digits of HMAC-SHA-256 over ``identifier`` (a SOP Instance UID, a patient's ID).

    The salt is ``EDGEMAMBA_SALT`` or a random one kept in ``$XDG_STATE_HOME/edgemamba/salt`` (mode 0600), so that names stay
    the same from run to run of one device. Where neither can be had, they are the same within one process only.
    """
    digest = hmac.new(_salt(), identifier.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return digest.hexdigest()[:_LENGTH]


@lru_cache(maxsize=1)
def _salt() -> bytes:
    if given := os.environ.get("EDGEMAMBA_SALT"):
        return given.encode("utf-8", "surrogateescape")
    path = state_folder() / "salt"
    try:
        return _kept(path)
    except OSError:
        return secrets.token_bytes(32)


def _kept(path: Path) -> bytes:
    """The salt in a file, which the first process to ask makes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = path.with_name(f"salt.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            os.link(draft, path)  # whole or not at all, and only one process wins
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    salt = path.read_bytes()
    if not salt:
        raise OSError(f"{path} is empty")
    return salt
