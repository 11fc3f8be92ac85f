"""Opening a DICOM file that may be hostile: what a header can make a parser read, inflate or allocate has a limit.

pydicom reads as many bytes as an element's header asks for, and inflates a deflated data set whole. Both go through
:class:`BoundedFile`, so that a file of a kilobyte cannot ask for gigabytes.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["LARGEST_INFLATED", "BoundedFile", "is_dicom", "parse_elements", "without_long_values"]

#: What a deflated data set (transfer syntax 1.2.840.10008.1.2.1.99) may inflate to, in bytes. It is held in memory, and for a
#: moment its pixel data twice.
LARGEST_INFLATED = 512 << 20
# Values longer than this stay in the file unless they are asked for; what is used of a header is far shorter.
_LARGEST_VALUE = 64 << 20
# A header is kept in memory as long as its frames are, without values longer than this.
_LARGEST_KEPT = 64 << 10
_CHUNK = 1 << 20


class BoundedFile(io.BufferedReader):
    """A file opened for reading, safe against lengths that are not there.

    Reading "the rest" is what pydicom does with a deflated data set and with nothing else; the rest is therefore first inflated
    piece by piece and thrown away, and refused if it is too long.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but a buffer is never larger than what the file still holds.

        Raises:
            SourceError: the rest is asked for, and is a deflate stream that inflates to more than the limit.
        """
        if size is None or size < 0:
            rest = super().read()
            _check_inflated(rest)
            return rest
        if size > _CHUNK:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def _check_inflated(deflated: bytes) -> None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    pending = deflated
    while pending and not inflater.eof:
        try:
            total += len(inflater.decompress(pending, _CHUNK))
        except zlib.error:
            return  # pydicom says what is wrong with it
        if total > LARGEST_INFLATED:
            raise SourceError(
                f"its deflated data set inflates to more than {LARGEST_INFLATED >> 20} MiB, the limit for such files; "
                "convert it to an uncompressed syntax"
            )
        pending = inflater.unconsumed_tail


def is_dicom(path: Path) -> bool:
    """Whether the file carries the DICOM prefix (``DICM`` after a preamble of 128 bytes)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def parse_elements(file: BoundedFile, only: Sequence[str] | None = None) -> Dataset:
    """The elements before the pixel data; the file then stands at the pixel data, unless it is deflated.

    Args:
        file: of any position.
        only: keywords; other elements are passed over.

    Raises:
        SourceError: it is deflated, and inflates to too much.
        Exception: whatever pydicom stumbles over.
    """
    pydicom = require("pydicom", purpose="reading DICOM files")
    file.seek(0)
    dataset: Dataset = pydicom.dcmread(
        file,
        stop_before_pixels=True,
        defer_size=_LARGEST_VALUE,
        force=True,
        specific_tags=list(only) if only is not None else None,
    )
    return dataset


def without_long_values(dataset: Dataset) -> Dataset:
    """A new data set of the same elements, as they stand in the file, without values longer than 64 KiB.

    Whoever reads the one changes nothing in the other: pydicom parses an element in place when it is first asked for.
    """
    short = require("pydicom").Dataset({item.tag: item for item in dataset.values() if _length(item) <= _LARGEST_KEPT})
    implicit, little = dataset.original_encoding
    short.set_original_encoding(implicit, little, dataset.original_character_set)
    kept: Dataset = short
    return kept


def _length(element: Any) -> int:
    """Of a value as it stands in the file; sequences and what was parsed already count as short."""
    length = getattr(element, "length", 0)
    return 0 if length == 0xFFFFFFFF else int(length)
