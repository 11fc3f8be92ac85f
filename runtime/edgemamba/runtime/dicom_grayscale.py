"""From stored grey values to what a viewer shows: modality LUT, VOI, polarity (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2).

The whole chain maps each stored value to one displayed value. It is therefore computed in float64 on a table of the values that
can occur, and the frame is looked up in it; the result keeps 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

FULL_SCALE = 65535
_LARGEST_TABLE = 1 << 16
_BLOCK = 1 << 20  # pixels


@dataclass(frozen=True)
class Window:
    """A window of interest, in the units that the modality LUT or rescale gives (Hounsfield units for CT).

    Attributes:
        center, width: Window Center (0028,1050) and Window Width (0028,1051).
        function: VOI LUT Function (0028,1056).

    Raises:
        ValueError: the width is below 1 (LINEAR), or not positive.
    """

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    def __post_init__(self) -> None:
        least = 1 if self.function == "LINEAR" else np.nextafter(0, 1)
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width >= least):
            raise ValueError(
                f"a {self.function} window of center {self.center:g} and width {self.width:g} is not defined; the width "
                f"must be {'1 or more' if self.function == 'LINEAR' else 'above 0'}"
            )

    def __str__(self) -> str:
        return f"window {self.center:g}/{self.width:g} {self.function}"

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displayed values in 0..1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
        if self.function == "SIGMOID":
            # Beyond +-40 the function is 0 or 1 to the last bit; the clip keeps exp from overflowing.
            displayed: NDArray[np.float64] = 1 / (
                1 + np.exp(-4 * np.clip((values - self.center) / self.width, -40, 40))
            )
            return displayed
        exact = self.function == "LINEAR_EXACT"
        center = self.center if exact else self.center - 0.5
        width = self.width if exact else self.width - 1
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


#: ``auto``: the file's VOI LUT, else its window, else the whole range for 8-bit pictures, else the frame's least to
#: greatest value. The other names force one of these; a :class:`Window` replaces what the file says.
Voi = Window | Literal["auto", "lut", "window", "full", "minmax"]


@dataclass(frozen=True)
class _Lut:
    """A look-up table of PS3.3 C.11: ``table[0]`` is for inputs up to ``first``, ``table[-1]`` for all above its end."""

    first: int
    table: NDArray[np.float64]
    bits: int

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        index = np.clip(np.rint(values) - self.first, 0, len(self.table) - 1).astype(np.intp)
        looked_up: NDArray[np.float64] = self.table[index]
        return looked_up


class GrayscaleTransform:
    """The display chain of one frame.

    Args:
        dataset: the file's elements without the pixel data.
        index: of the frame, from 0; enhanced multi-frame files may give each its own rescale and window.
        voi: which value of interest transformation to use.
        little_endian: of the file's transfer syntax; for look-up tables stored as bytes.

    Raises:
        ValueError: ``voi`` names a transformation that the file does not carry.
    """

    def __init__(self, dataset: Dataset, index: int = 0, voi: Voi = "auto", little_endian: bool = True) -> None:
        self._signed = dataset.get("PixelRepresentation", 0) == 1
        self._bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
        order: Literal["<", ">"] = "<" if little_endian else ">"
        self._modality_lut = next(_luts(dataset, "ModalityLUTSequence", order, self._signed), None)
        rescale = functional_group(dataset, index, "PixelValueTransformationSequence")
        self._slope = _number(rescale, "RescaleSlope", 1.0)
        self._intercept = _number(rescale, "RescaleIntercept", 0.0)
        self._padding = _padding(dataset, self._signed)
        # C.7.6.3.1.2: inversion comes last. Presentation LUT Shape says the same thing again, and inverts no second time.
        shape = str(dataset.get("PresentationLUTShape") or "").upper()
        self._inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"
        self._voi = self._choose(dataset, index, voi, order)

    def __str__(self) -> str:
        """Which value of interest transformation is applied, as a person would say it."""
        if isinstance(self._voi, _Lut):
            return "VOI LUT"
        if isinstance(self._voi, Window):
            return str(self._voi)
        return "full range of the stored values" if self._voi == "full" else "least to greatest value of the frame"

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.uint16]:
        """Displayed values.

        Args:
            stored: (H, W) integers or floats, as stored.

        Returns:
            uint16 (H, W, 1): 0 is black, 65535 white.
        """
        limits = self._limits(stored)
        shown = np.empty((*stored.shape, 1), np.uint16)
        # In blocks of rows: indices and float64 values take four times a large frame's memory.
        rows = max(1, _BLOCK // max(1, stored.shape[1]))
        blocks = [slice(row, row + rows) for row in range(0, stored.shape[0], rows)]
        if np.issubdtype(stored.dtype, np.integer):
            low, high = int(stored.min()), int(stored.max())
            if high - low < min(stored.size, _LARGEST_TABLE):
                table = self._display(np.arange(low, high + 1, dtype=np.float64), limits)
                for block in blocks:
                    shown[block, :, 0] = table[np.subtract(stored[block], low, dtype=np.int64)]
                return shown
        for block in blocks:
            shown[block, :, 0] = self._display(stored[block].astype(np.float64), limits)
        return shown

    def modality(self, stored: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values in the modality's units (Hounsfield units of CT): what the stored ones mean, before any display."""
        if self._modality_lut is not None:
            return self._modality_lut.apply(stored)
        return stored * self._slope + self._intercept

    def _display(self, stored: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.uint16]:
        values = self.modality(stored)
        if isinstance(self._voi, _Lut):
            unit = self._voi.apply(values) / max(2**self._voi.bits - 1, self._voi.table.max(initial=0))
        elif isinstance(self._voi, Window):
            unit = self._voi.apply(values)
        else:
            low, high = limits
            unit = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
        unit = np.nan_to_num(unit, nan=0.0)  # float pixel data may hold NaN outside the body
        return np.rint((1 - unit if self._inverted else unit) * FULL_SCALE).astype(np.uint16)

    def _limits(self, stored: NDArray[Any]) -> tuple[float, float]:
        """The values shown black and white where neither a LUT nor a window decides."""
        if self._voi == "full":
            low = -(2 ** (self._bits - 1)) if self._signed else 0
            ends = np.array([low, low + 2**self._bits - 1], np.float64)
            values = self._modality_lut.table if self._modality_lut is not None else self.modality(ends)
        elif self._voi == "minmax":
            valid = stored[np.isfinite(stored)] if np.issubdtype(stored.dtype, np.floating) else stored
            if self._padding is not None:
                valid = valid[(valid < self._padding[0]) | (valid > self._padding[1])]
            if not valid.size:
                return 0.0, 0.0
            # A rescale is monotonic, so that its ends are enough; a LUT need not be.
            used = valid if self._modality_lut is not None else np.array([valid.min(), valid.max()])
            values = self.modality(used.astype(np.float64))
        else:
            return 0.0, 0.0
        return float(values.min()), float(values.max())

    def _choose(self, dataset: Dataset, index: int, voi: Voi, order: Literal["<", ">"]) -> _Lut | Window | str:
        if isinstance(voi, Window) or voi in ("full", "minmax"):
            return voi
        group = functional_group(dataset, index, "FrameVOILUTSequence")
        lut = next(_luts(dataset, "VOILUTSequence", order, self._signed), None)
        if lut is not None and voi in ("auto", "lut"):
            return lut
        window = _window(group)
        if window is not None and voi in ("auto", "window"):
            return window
        if voi == "auto":
            plain = self._bits <= 8 and self._modality_lut is None and (self._slope, self._intercept) == (1.0, 0.0)
            return "full" if plain else "minmax"
        missing = {"lut": "VOI LUT Sequence (0028,3010)", "window": "Window Center (0028,1050) and Width (0028,1051)"}
        if voi not in missing:
            raise ValueError(f"there is no VOI transformation {voi!r}; choose auto, lut, window, full or minmax")
        raise ValueError(f"the file has no usable {missing[voi]}")


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset:
    """Where a frame's own value of ``keyword`` stands: its functional group, the shared one, or the file itself (C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([per_frame[index]] if index < len(per_frame) else [], shared[:1]):
        for group in groups:
            if items := group.get(keyword):
                item: Dataset = items[0]
                return item
    return dataset


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    """The element's first value as a finite number."""
    value = dataset.get(keyword)
    try:
        number = float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
    except (TypeError, ValueError, IndexError):
        return default
    return number if np.isfinite(number) else default


def _window(dataset: Dataset) -> Window | None:
    """The first window, or None where there is none or its width makes no sense (files with width 0 exist)."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
    try:
        return Window(
            _number(dataset, "WindowCenter", np.nan),
            _number(dataset, "WindowWidth", np.nan),
            function,  # type: ignore[arg-type]
        )
    except ValueError:
        return None


def _luts(dataset: Dataset, keyword: str, order: Literal["<", ">"], signed: bool) -> Iterator[_Lut]:
    """The usable look-up tables of a sequence."""
    for item in dataset.get(keyword) or []:
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor is None or data is None or len(descriptor) != 3:
            continue
        entries, first, bits = (int(value) for value in descriptor)
        entries = entries or 1 << 16
        if isinstance(data, bytes):  # OW: one byte or two for each entry
            wide = len(data) >= 2 * entries
            table = np.frombuffer(data[: entries * (1 + wide)], f"{order}u2" if wide else "u1")
        else:
            table = np.atleast_1d(np.asarray(data))
        if signed and first >= 1 << 15:  # read as unsigned though the pixels are signed
            first -= 1 << 16
        if len(table) and 1 <= bits <= 16:
            yield _Lut(first, table.astype(np.float64), bits)


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """The stored values that stand for "nothing here" (C.7.5.1.1.2), least and greatest."""
    value = dataset.get("PixelPaddingValue")
    limit = dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    ends = [value, limit if isinstance(limit, int) else value]
    ends = [end - (1 << 16) if signed and end >= 1 << 15 else end for end in ends]
    return min(ends), max(ends)
