"""Overlay planes (PS3.3 C.9.2): lines and letters that viewers draw over a picture. Drawn only where asked for.

Models are trained on pictures without them, and what is written in an overlay may name the patient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SourceError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["with_overlays"]

_GROUPS = range(0x6000, 0x6020, 2)  # PS3.5 7.6: sixteen at most
_ROWS, _COLUMNS, _FRAMES, _ORIGIN, _FIRST_FRAME, _DATA = 0x10, 0x11, 0x15, 0x50, 0x51, 0x3000
#: Pixels of one overlay; the largest detectors have fewer.
MOST_PIXELS = 1 << 26


def with_overlays(pixels: NDArray[Any], dataset: Dataset, index: int, little_endian: bool = True) -> NDArray[Any]:
    """The picture with its overlays in white.

    Planes that stand in unused bits of the pixels (retired in 2004) are not drawn.

    Args:
        pixels: (H, W, C), uint8 or uint16.
        dataset: the file's elements.
        index: of the frame, from 0. An overlay without Image Frame Origin belongs to all frames.
        little_endian: of the file's transfer syntax.

    Raises:
        SourceError: an overlay's elements are damaged.
    """
    drawn = pixels
    for group in _GROUPS:
        if (group, _DATA) not in dataset:
            continue
        try:
            found = _plane(dataset, group, index, little_endian)
        except SourceError:
            raise
        except Exception as error:  # what it says may quote a value
            raise SourceError(f"its overlay ({group:04X},3000) is damaged ({type(error).__name__})") from None
        if found is not None:
            drawn = _drawn(drawn.copy() if drawn is pixels else drawn, *found)
    return drawn


def _plane(
    dataset: Dataset, group: int, index: int, little_endian: bool
) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """A frame's plane (H, W), and the row and column of the picture, from 0, of its first pixel; None where it has none."""

    def value(element: int, default: Any = None) -> Any:
        found = dataset.get((group, element))
        return default if found is None or found.value in (None, "") else found.value

    rows, columns = int(value(_ROWS)), int(value(_COLUMNS))
    size = rows * columns
    if size > MOST_PIXELS:
        raise SourceError(f"its overlay ({group:04X},3000) is {columns} x {rows}, more than {MOST_PIXELS} pixels")
    frame = 0
    if value(_FIRST_FRAME) is not None or int(value(_FRAMES, 1)) > 1:
        frame = index - (int(value(_FIRST_FRAME, 1)) - 1)
        if not 0 <= frame < int(value(_FRAMES, 1)):
            return None
    data: bytes = value(_DATA, b"")
    if not little_endian and dataset[group, _DATA].VR == "OW":
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    begin = frame * size  # in bits: frames follow each other without padding (PS3.5 8.1.2)
    chunk = np.frombuffer(data, np.uint8)[begin // 8 : -(-(begin + size) // 8)]
    bits = np.unpackbits(chunk, bitorder="little")[begin % 8 :][:size]
    if len(bits) < size:
        raise SourceError(f"its overlay ({group:04X},3000) is cut short")
    top, left = (int(number) - 1 for number in value(_ORIGIN, (1, 1)))
    return bits.reshape(rows, columns).astype(bool), (top, left)


def _drawn(pixels: NDArray[Any], plane: NDArray[np.bool_], at: tuple[int, int]) -> NDArray[Any]:
    """Draw what of the plane lies within the picture, in place."""
    (top, left), (rows, columns) = at, plane.shape
    inside = plane[max(0, -top) : max(0, pixels.shape[0] - top), max(0, -left) : max(0, pixels.shape[1] - left)]
    part = pixels[max(0, top) : max(0, top + rows), max(0, left) : max(0, left + columns)]
    part[inside] = np.iinfo(pixels.dtype).max
    return pixels
