"""Where the compressed bytes of each frame lie in a DICOM file (PS3.5 Annex A.4), without reading them.

A walk over the item headers finds every fragment, and whether the file ends before the last of them does. With it a frame of a
long cine is read alone, and a frame that is cut short is known before a decoder makes something of half its bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from edgemamba.runtime.errors import SourceError

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_END_OF_IMAGE = b"\xff\xd9"  # closes a JPEG, JPEG-LS and JPEG 2000 codestream
#: Fragments and offsets that are read of a file. Each takes memory twenty times its size in the file; a whole-slide image of a
#: gigapixel has some ten thousand.
MOST_FRAGMENTS = 1 << 20


@dataclass(frozen=True)
class Fragment:
    """One item of the pixel data: where its tag stands, where its bytes begin, and how many there are."""

    tag: int
    start: int
    length: int


class EncapsulatedFrames:
    """Random access to the compressed frames of one file.

    Args:
        file: positioned at the first byte of the pixel data's value, that is at the Basic Offset Table.
        frames: how many frames the file promises.
        extended_offsets: the raw value of (7FE0,0001) Extended Offset Table, where present.

    Raises:
        SourceError: the pixel data are not a sequence of items, or of more than :data:`MOST_FRAGMENTS`.
    """

    def __init__(self, file: BinaryIO, frames: int, extended_offsets: bytes | None = None) -> None:
        self._file = file
        offsets, fragments = _walk(file)
        if extended_offsets:
            _check_count(len(extended_offsets) // 8)
            offsets = struct.unpack(
                f"<{len(extended_offsets) // 8}Q", extended_offsets[: len(extended_offsets) // 8 * 8]
            )
        end = file.seek(0, 2)
        self._complete = [fragment.start + fragment.length <= end for fragment in fragments]
        self._fragments = fragments
        self._groups = self._group(offsets, frames)

    def __len__(self) -> int:
        """How many frames were found, the last perhaps cut short."""
        return len(self._groups)

    @property
    def whole(self) -> bool:
        """Whether no fragment that was found is cut short."""
        return all(self._complete)

    def read(self, index: int) -> list[bytes]:
        """The fragments of one frame.

        Raises:
            SourceError: the file ends before the frame does.
        """
        if index >= len(self._groups):
            raise SourceError(f"the pixel data (7FE0,0010) end after {len(self._groups)} frames; the file is cut short")
        group = self._groups[index]
        if not all(self._complete[i] for i in group):
            raise SourceError("its compressed bytes are cut short; the file ends inside the pixel data (7FE0,0010)")
        return [self._bytes(self._fragments[i]) for i in group]

    def _bytes(self, fragment: Fragment) -> bytes:
        self._file.seek(fragment.start)
        return self._file.read(fragment.length)

    def _group(self, offsets: tuple[int, ...], frames: int) -> list[range]:
        """Which fragments make up each frame: by an offset table, by count, or by the codestreams' end markers."""
        count = len(self._fragments)
        if offsets and self._fragments:
            first = self._fragments[0].tag
            starts = {fragment.tag - first: i for i, fragment in enumerate(self._fragments)}
            begins = [starts.get(offset) for offset in offsets]
            known = [begin for begin in begins if begin is not None]
            # Offsets beyond a cut are unknown and end the list; any other mismatch makes the table worthless.
            if known and begins[: len(known)] == known and known == sorted(set(known)):
                return [range(a, b) for a, b in zip(known, [*known[1:], count], strict=True)]
        if frames == 1:
            return [range(count)] if count else []
        if count <= frames:
            return [range(i, i + 1) for i in range(count)]
        ends = [i + 1 for i in range(count) if _END_OF_IMAGE in self._bytes(self._fragments[i])[-10:]]
        return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _check_count(count: int) -> None:
    if count > MOST_FRAGMENTS:
        raise SourceError(
            f"the compressed pixel data (7FE0,0010) are in more than {MOST_FRAGMENTS} fragments, the limit for one file"
        )


def _walk(file: BinaryIO) -> tuple[tuple[int, ...], list[Fragment]]:
    """The Basic Offset Table and every fragment; a file that ends early gives those whose header is whole."""
    table: tuple[int, ...] = ()
    fragments: list[Fragment] = []
    first = True
    while True:
        tag_at = file.tell()
        header = file.read(8)
        if len(header) < 8 or header[:4] == _DELIMITER:
            return table, fragments
        length = struct.unpack("<L", header[4:])[0]
        if header[:4] != _ITEM or length == 0xFFFFFFFF:
            if first or not fragments:
                raise SourceError("the compressed pixel data (7FE0,0010) do not start with an item (FFFE,E000)")
            return table, fragments
        if first:
            _check_count(length // 4)
            raw = file.read(length)
            table = struct.unpack(f"<{len(raw) // 4}L", raw[: len(raw) // 4 * 4])
            first = False
        else:
            fragments.append(Fragment(tag_at, tag_at + 8, length))
            _check_count(len(fragments))
            file.seek(length, 1)
