"""Which decoder reads a transfer syntax here, and what to install where none does."""

from __future__ import annotations

from typing import Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require

__all__ = ["find_decoder", "hint"]

# Compressed syntaxes that the "dicom" extra does not decode, and what does.
_GDCM = 'pip install "edgemamba[dicom-gdcm]"'
_REMEDIES = {
    "1.2.840.10008.1.2.4.51": "pip install pylibjpeg-libjpeg (GPL-3), or convert the file to an uncompressed syntax",
    "1.2.840.10008.1.2.4.57": _GDCM,
    "1.2.840.10008.1.2.4.70": _GDCM,
}


def find_decoder(syntax: Any) -> Any:
    """pydicom's decoder of a transfer syntax (a ``pydicom.uid.UID``).

    Raises:
        SourceError: there is none, or none that is installed; the message names the remedy.
    """
    name = syntax.name
    what = f"transfer syntax {syntax}" if name == syntax else f"transfer syntax {name} ({syntax})"
    try:
        decoder = require("pydicom.pixels", purpose="reading DICOM files").get_decoder(syntax)
    except NotImplementedError:
        raise SourceError(
            f"{what} is not supported; convert the file to an uncompressed syntax, e.g. with dcmtk or gdcmconv"
        ) from None
    if not decoder.is_available:
        remedy = _REMEDIES.get(syntax, 'pip install "edgemamba[dicom]"')
        raise SourceError(f"{what} cannot be decoded with what is installed: {remedy}")
    return decoder


def hint(syntax: Any) -> str:
    """What may help where the installed decoder fails on a frame; empty where nothing is known."""
    remedy = _REMEDIES.get(syntax)
    return f"; {syntax.name} may need another decoder: {remedy}" if remedy else ""
