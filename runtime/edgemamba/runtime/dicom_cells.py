"""Pixel cells: which bits of what is allocated are the value (PS3.5 8.1.1, and its annex D of 1999 to 2014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["shift_of", "shifted"]

_RLE = "1.2.840.10008.1.2.5"


def shift_of(dataset: Dataset, options: dict[str, Any], syntax: Any) -> int:
    """By how many bits values stand above bit 0: High Bit + 1 - Bits Stored. Today's standard wants 0.

    0 for codestreams other than RLE, which hold values, not cells; for floats; and where the header's numbers do not fit each
    other, or cannot be parsed.

    Args:
        dataset: the file's elements.
        options: pydicom's, made of them.
        syntax: the transfer syntax.
    """
    try:
        high_bit = dataset.get("HighBit")
    except Exception:  # whatever pydicom stumbles over: nearly all files can do without it
        return 0
    encoded = syntax.is_encapsulated and syntax != _RLE
    if not isinstance(high_bit, int) or encoded or options.get("bits_stored") is None:
        return 0
    fits = options["bits_stored"] <= high_bit + 1 <= options["bits_allocated"] in (8, 16, 32)
    return int(high_bit + 1 - options["bits_stored"]) if fits and options["pixel_keyword"] == "PixelData" else 0


def shifted(cells: NDArray[Any], shift: int, bits_stored: int, signed: bool) -> NDArray[Any]:
    """Values from unsigned cells: what stands above and below them is cut off, and the sign extended.

    Args:
        cells: unsigned, as stored.
        shift: of :func:`shift_of`.
        bits_stored: of a value.
        signed: whether its highest bit is a sign.
    """
    width = 8 * cells.dtype.itemsize
    # To the top of the cell and down again: the first drops what is above, the second what is below, with or without sign.
    top = (cells << np.array(width - bits_stored - shift, cells.dtype)).astype(cells.dtype)
    values = top.view(cells.dtype.str.replace("u", "i")) if signed else top
    return np.asarray(values >> np.array(width - bits_stored, values.dtype))
