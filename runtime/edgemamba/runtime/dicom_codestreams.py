"""How large a picture a compressed frame says it is, before a decoder believes it.

Decoders allocate what the codestream's own header promises, whatever the DICOM header says: a JPEG 2000 codestream of 200 bytes
may promise 65535 x 65535 pixels.
"""

from __future__ import annotations

import struct

__all__ = ["promised_size"]

_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ISO/IEC 15444-1 A.4.1, A.5.1)
_JP2_BOX = b"\x00\x00\x00\x0cjP  "
# SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 B.1.1.3); SOF55 is JPEG-LS' (ISO/IEC 14495-1).
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def promised_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Height, width and number of components by the codestream's header; None where it is none that is known here, or cut.

    Knows JPEG, JPEG-LS, JPEG 2000 and HTJ2K.
    """
    if codestream.startswith((_J2K_START, _JP2_BOX)):
        return _jpeg2000(codestream)
    if codestream.startswith(b"\xff\xd8"):
        return _jpeg(codestream)
    return None


def _jpeg2000(codestream: bytes) -> tuple[int, int, int] | None:
    at = codestream.find(_J2K_START)
    if at < 0 or len(codestream) < at + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4L", codestream, at + 8)
    components = struct.unpack_from(">H", codestream, at + 40)[0]
    return max(0, bottom - top), max(0, right - left), int(components)


def _jpeg(codestream: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 4 <= len(codestream):
        if codestream[at] != 0xFF:
            return None
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _SOF:
            if at + 10 > len(codestream):
                return None
            height, width, components = struct.unpack_from(">HHB", codestream, at + 5)
            return int(height), int(width), int(components)
        else:
            at += 2 + int(struct.unpack_from(">H", codestream, at + 2)[0])
    return None
