"""A frame: the unit that sources give and engines take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

#: The pace of pictures that have no clock of their own, such as a folder of files, in frames a second.
NOMINAL_FPS = 10.0


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        pixels: uint8 (H, W, 3) in RGB order; or uint16 / float32 (H, W, 1) for grey pictures of more than 8 bits. Grey DICOM
            is always uint16 over the full scale: its 12 or 16 bits pass the display chain in float64 and are rounded once,
            here, and once more at the model's input (:meth:`edgemamba.runtime.preprocessing.Preprocessing.fit`); only a
            bundle whose input is uint8 reduces them to 8.
        index: position in the source, from 0, counting every frame (also those skipped).
        timestamp: seconds since the source's first frame, by the source's own clock: a video's presentation times, a
            DICOM cine's frame times, a camera's moments of capture. Pictures without a clock are paced at
            :data:`NOMINAL_FPS`.
        source: what a person would call it: a file's name, a camera's number.
        metadata: JSON-able extras of the source; never a patient-identifying attribute.
    """

    pixels: NDArray[np.generic]
    index: int
    timestamp: float
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def height(self) -> int:
        """Rows of the picture, in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of the picture, in pixels."""
        return int(self.pixels.shape[1])


@dataclass(frozen=True)
class DicomFrame(Frame):
    """A frame of a DICOM instance, with the instance's header for those who write DICOM objects about it.

    The header identifies the patient. It is no part of :attr:`metadata`, is not printed, and reaches no sink but DICOM's
    (:mod:`edgemamba.runtime.privacy`).

    Attributes:
        header: the instance's elements before its pixel data; see :attr:`edgemamba.runtime.dicom_pixels.DicomImage.header`.
    """

    header: Dataset | None = field(default=None, repr=False, compare=False)
