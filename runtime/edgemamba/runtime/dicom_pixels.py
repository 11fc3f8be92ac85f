"""DICOM to pixels: the one path by which training and devices read DICOM files.

Frames are decoded one by one, from an open file, so that a long cine needs the memory of one frame. Grey pictures go through
the display chain of :mod:`edgemamba.runtime.dicom_grayscale` and keep 16 bits; colour pictures become 8-bit RGB (palettes are
applied, YBR is converted). Overlays are drawn only where asked for, and ICC profiles are not applied: models are trained on
pixels without either.

Decoding is pydicom's, with whichever of its plugins are installed. Nothing here returns or logs an attribute that identifies a
patient.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.dicom_cells import shift_of, shifted
from edgemamba.runtime.dicom_codestreams import promised_size
from edgemamba.runtime.dicom_decoders import find_decoder, hint
from edgemamba.runtime.dicom_files import BoundedFile, is_dicom, parse_elements, without_long_values
from edgemamba.runtime.dicom_fragments import EncapsulatedFrames
from edgemamba.runtime.dicom_geometry import geometry, pixel_aspect_ratio, squared
from edgemamba.runtime.dicom_grayscale import GrayscaleTransform, Voi, Window
from edgemamba.runtime.dicom_overlays import with_overlays
from edgemamba.runtime.dicom_times import FrameTimes
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["LARGEST_FRAME", "DicomImage", "Voi", "Window", "is_dicom"]

_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_GREY = ("MONOCHROME1", "MONOCHROME2")
#: Bytes of one frame as stored. A larger one is a broken or hostile header: the largest detectors give some 100 MB. Decoding
#: takes about three times as much memory.
LARGEST_FRAME = 256 << 20


class DicomImage:
    """The frames of one DICOM file, by index.

    Args:
        path: the file. A file without the DICOM prefix is accepted if it parses as a data set with an image in it.
        voi: the value of interest transformation of grey pictures; see :data:`~edgemamba.runtime.dicom_grayscale.Voi`.
        square_pixels: enlarge pictures whose pixels are not square along the coarser axis, as viewers do. By default pixels
            stay as they are stored, and :meth:`metadata` says their ``pixel_aspect_ratio``.
        overlays: draw the file's overlay planes in white.

    Raises:
        SourceError: the file is missing, empty, not DICOM, carries no pixel data or too few elements to decode them, or
            its transfer syntax cannot be decoded here; the message names the element and the remedy.
    """

    def __init__(
        self, path: str | Path, voi: Voi = "auto", square_pixels: bool = False, overlays: bool = False
    ) -> None:
        self.path = Path(path)
        self._voi = voi
        self._square_pixels = square_pixels
        self._overlays = overlays
        pydicom = require("pydicom", purpose="reading DICOM files")
        try:
            self._file: BoundedFile | io.BytesIO = BoundedFile(self.path)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            self._open(pydicom)
        except SourceError as error:
            self.close()
            raise SourceError(f"{self.path}: {error}") from None
        except Exception as error:  # any parser may stumble over damaged bytes
            self.close()
            raise SourceError(f"{self.path}: {_damaged(error)}") from None

    # ------------------------------------------------------------------------------------------------------- what it is

    def __len__(self) -> int:
        """The number of frames that the file promises."""
        return self._length

    @property
    def present(self) -> int:
        """How many of the promised frames the file holds; fewer where it was cut short."""
        if self._encapsulated is not None:
            return min(len(self._encapsulated), len(self))
        return min(8 * self._available // max(1, self._frame_bits()), len(self))

    @property
    def whole(self) -> bool:
        """Whether the file holds all that it promises, to the last byte of the last frame."""
        return self.present == len(self) and (self._encapsulated is None or self._encapsulated.whole)

    @property
    def fps(self) -> float | None:
        """Frames a second by the file's own clock, where it has one."""
        return self._times.fps

    def timestamp(self, index: int) -> float | None:
        """Seconds since the first frame, by Frame Time, Frame Time Vector or Cine Rate; None where the file has no clock."""
        return self._times.seconds(index)

    def metadata(self, index: int) -> dict[str, Any]:
        """JSON-able facts about a frame; none of them identifies a patient. Elements that are damaged are left out."""
        grey = self._dataset.PhotometricInterpretation in _GREY
        return {
            "modality": self._modality(),
            "rows": int(self._dataset.Rows),
            "columns": int(self._dataset.Columns),
            "frame_number": index + 1,
            "number_of_frames": len(self),
            "transfer_syntax": self._syntax.name,
            "photometric_interpretation": str(self._dataset.PhotometricInterpretation),
            "bits_stored": int(self._dataset.get("BitsStored") or self._dataset.BitsAllocated),
            **({"voi": str(self._grayscale(index))} if grey else {}),
            **self._geometry(index),
        }

    @property
    def header(self) -> Dataset:
        """A copy of the elements before the pixel data without values longer than 64 KiB. It identifies the patient."""
        return without_long_values(self._dataset)

    # pydicom parses an element when it is first asked for, and may stumble then. No picture is lost over what it can do without.

    def _modality(self) -> str:
        try:
            return str(self._dataset.get("Modality") or "")
        except Exception:
            return ""

    def _geometry(self, index: int) -> dict[str, Any]:
        try:
            return geometry(self._dataset, index)
        except Exception:
            return {}

    # ------------------------------------------------------------------------------------------------------ its pixels

    def frame(self, index: int) -> NDArray[np.generic]:
        """Decode one frame.

        Returns:
            Grey: uint16 (H, W, 1), 0 black and 65535 white, after modality LUT, VOI and polarity. Colour: uint8
            (H, W, 3) RGB.

        Raises:
            IndexError: there is no such frame.
            SourceError: the frame is cut short or cannot be decoded; other frames may still be good.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} frames; there is no frame {index}")
        try:
            stored, photometric = self._decode(index)
            grey = photometric in _GREY
            shown = self._grayscale(index)(stored) if grey else self._colour(stored, photometric)
            if self._overlays:
                shown = with_overlays(shown, self._dataset, index, self._syntax.is_little_endian)
            return squared(shown, pixel_aspect_ratio(self._dataset, index)) if self._square_pixels else shown
        except SourceError as error:
            raise SourceError(f"{self.path} frame {index + 1} of {len(self)}: {error}") from None
        except Exception as error:
            raise SourceError(
                f"{self.path} frame {index + 1} of {len(self)} cannot be decoded: {_reason(error)}{hint(self._syntax)}"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> DicomImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------------------- opening

    def _open(self, pydicom: Any) -> None:
        assert isinstance(self._file, BoundedFile)
        prefixed = is_dicom(self.path)
        if self.path.stat().st_size == 0:
            raise SourceError("the file is empty")
        try:
            dataset: Dataset = parse_elements(self._file)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(_damaged(error) if prefixed else "this is not a DICOM file") from None
        if not prefixed and not ("Rows" in dataset and "PhotometricInterpretation" in dataset):
            raise SourceError("this is not a DICOM file (no DICM prefix, and no data set with an image)")
        self._dataset = dataset
        self._syntax = self._transfer_syntax(pydicom)
        self._locate(pydicom)
        self._check_elements(pydicom)
        self._decoder = find_decoder(self._syntax)
        self._length = self._frame_count()
        self._options = pydicom.pixels.as_pixel_options(
            dataset, pixel_keyword=self._keyword, pixel_vr=self._representation, number_of_frames=self._length
        )
        self._options.pop("extended_offsets", None)  # frames are found by EncapsulatedFrames
        self._shift = shift_of(dataset, self._options, self._syntax)
        self._times = FrameTimes(dataset, self._length)
        self._per_frame = "PerFrameFunctionalGroupsSequence" in dataset
        self._transforms: dict[int, GrayscaleTransform] = {}
        self._encapsulated: EncapsulatedFrames | None = None
        if self._syntax.is_encapsulated:
            self._file.seek(self._start)
            self._encapsulated = EncapsulatedFrames(self._file, self._length, dataset.get("ExtendedOffsetTable"))
        if dataset.PhotometricInterpretation in _GREY:
            self._grayscale(0)  # a transformation that the file does not carry is an error now, not at the first frame

    def _transfer_syntax(self, pydicom: Any) -> Any:
        """The file's syntax; for files without one (and no prefix), the encoding by which they could be parsed."""
        syntax = self._dataset.file_meta.get("TransferSyntaxUID") if hasattr(self._dataset, "file_meta") else None
        if syntax:
            return pydicom.uid.UID(syntax)
        implicit, little = self._dataset.original_encoding
        if implicit:
            return pydicom.uid.ImplicitVRLittleEndian
        return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian

    def _locate(self, pydicom: Any) -> None:
        """Find the pixel data's value: its keyword, where it starts and how many bytes of it the file holds."""
        if self._syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
            self._inflate(pydicom)
            return
        order = "<" if self._syntax.is_little_endian else ">"
        header = self._file.read(8)
        tag = length = 0
        if len(header) == 8:
            group, element, length = struct.unpack(f"{order}HHL", header)
            tag = group << 16 | element
        if tag not in _PIXEL_TAGS:
            raise SourceError(self._no_pixel_data())
        self._keyword = _PIXEL_TAGS[tag]
        self._representation = "OW"  # the value representation of implicit files (PS3.5 A.1)
        if not self._syntax.is_implicit_VR:
            self._representation = header[4:6].decode("ascii", "replace")
            length = struct.unpack(f"{order}L", self._file.read(4).ljust(4, b"\0"))[0]
        self._start = self._file.tell()
        end = self._file.seek(0, 2)
        self._available = end - self._start if length == 0xFFFFFFFF else min(length, end - self._start)

    def _inflate(self, pydicom: Any) -> None:
        """A deflated data set is one compressed stream: its pixel data are read whole and stand in for the file."""
        self._file.seek(0)
        dataset = pydicom.dcmread(self._file)
        self._keyword = next((keyword for keyword in _PIXEL_TAGS.values() if keyword in dataset), "")
        if not self._keyword:
            raise SourceError(self._no_pixel_data())
        self._file.close()
        self._file = io.BytesIO(dataset[self._keyword].value)
        self._representation = dataset[self._keyword].VR
        self._start, self._available = 0, self._file.getbuffer().nbytes

    def _no_pixel_data(self) -> str:
        kind = getattr(self._dataset.get("SOPClassUID"), "name", "")
        cut = "; perhaps it was cut short" if "Rows" in self._dataset else ""
        return f"the file{f' ({kind})' if kind else ''} has no pixel data (7FE0,0010){cut}"

    def _check_elements(self, pydicom: Any) -> None:
        for keyword in _NEEDED:
            if not self._dataset.get(keyword):
                tag = pydicom.tag.Tag(keyword)
                raise SourceError(f"{tag} {keyword} is missing or empty; the pixels cannot be interpreted without it")
        bits = int(self._dataset.BitsAllocated)
        size = int(self._dataset.Rows) * int(self._dataset.Columns) * int(self._dataset.SamplesPerPixel) * bits // 8
        if size > LARGEST_FRAME:
            raise SourceError(f"one frame would take {size >> 20} MiB; frames up to {LARGEST_FRAME >> 20} MiB are read")

    def _frame_count(self) -> int:
        try:
            count = int(self._dataset.get("NumberOfFrames") or 1)
        except (TypeError, ValueError, OverflowError):
            count = 0
        if not 1 <= count < 1 << 31:  # PS3.5 6.2: an Integer String has 32 bits with its sign
            raise SourceError("(0028,0008) Number of Frames is not a positive number below 2147483648")
        return count

    # -------------------------------------------------------------------------------------------------------- decoding

    def _decode(self, index: int) -> tuple[NDArray[Any], str]:
        """Stored values (H, W) or (H, W, 3), and the photometric interpretation that they have now."""
        if self._encapsulated is None:
            return self._decode_native(index)
        from pydicom.encaps import encapsulate

        # One frame, wrapped up as a whole value of its own: every decoder plugin then sees what it expects.
        fragments = self._encapsulated.read(index)
        codestream = b"".join(fragments)
        self._check_codestream(codestream)
        value = encapsulate([codestream], has_bot=False)
        return self._as_array(value, 0, {**self._options, "number_of_frames": 1})

    def _check_codestream(self, codestream: bytes) -> None:
        """A decoder allocates what the codestream promises; it must not be more than the header does."""
        promised = promised_size(codestream)
        stated = (int(self._options["rows"]), int(self._options["columns"]), 4)
        if promised is not None and any(a > b for a, b in zip(promised, stated, strict=True)):
            height, width, components = promised
            raise SourceError(
                f"its compressed picture is {width} x {height} with {components} components, and (0028,0010) Rows and "
                f"(0028,0011) Columns say {stated[1]} x {stated[0]}"
            )

    def _decode_native(self, index: int) -> tuple[NDArray[Any], str]:
        bits = self._frame_bits()
        needed = -(-bits * (index + 1) // 8)
        if needed > self._available:
            raise SourceError(
                f"the pixel data (7FE0,0010) are cut short: {self._available} bytes of {-(-bits * len(self) // 8)}"
            )
        self._file.seek(self._start)
        return self._as_array(self._file, index, self._options)

    def _frame_bits(self) -> int:
        """Of one uncompressed frame, as stored."""
        options = self._options
        bits = int(options["rows"]) * int(options["columns"]) * int(options["samples_per_pixel"])
        bits *= int(options["bits_allocated"])
        return bits * 2 // 3 if options["photometric_interpretation"] == "YBR_FULL_422" else bits

    def _as_array(self, source: Any, index: int, options: dict[str, Any]) -> tuple[NDArray[Any], str]:
        if self._shift:  # pydicom takes values to begin at bit 0
            options = {**options, "bits_stored": options["bits_allocated"], "pixel_representation": 0}
        try:
            array, properties = self._decoder.as_array(source, index=index, validate=False, **options)
        except BaseException as error:
            # Decoders written in Rust (pylibjpeg-rle) panic over damaged bytes, and PyO3 raises that beside Exception.
            if type(error).__name__ == "PanicException":
                raise SourceError("its compressed bytes are damaged") from None
            raise
        if self._shift:
            stored, signed = self._options["bits_stored"], self._options["pixel_representation"] == 1
            array = shifted(array, self._shift, stored, signed)
        return array, str(properties["photometric_interpretation"])

    def _grayscale(self, index: int) -> GrayscaleTransform:
        """The frame's display chain; files without per-frame groups have one for all frames."""
        key = index if self._per_frame else 0
        if key not in self._transforms:
            self._transforms.clear()  # a cine of ten thousand frames needs no ten thousand tables
            try:
                transform = GrayscaleTransform(self._dataset, key, self._voi, self._syntax.is_little_endian)
            except ValueError as error:
                raise SourceError(str(error)) from None
            except Exception as error:
                raise SourceError(_damaged(error)) from None
            self._transforms[key] = transform
        return self._transforms[key]

    def _colour(self, stored: NDArray[Any], photometric: str) -> NDArray[np.uint8]:
        """Stored colour values to uint8 (H, W, 3) RGB."""
        if photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            rgb = apply_color_lut(stored, self._dataset)[..., :3]
            # 16-bit palettes hold 8-bit colours times 256 or times 257: the high byte is right for both.
            return (rgb >> 8 if rgb.dtype.itemsize == 2 else rgb).astype(np.uint8)
        # The JPEG 2000 transforms (YBR_ICT, YBR_RCT) are undone by the decoder; pydicom has converted YBR_FULL(_422).
        if photometric not in ("RGB", "YBR_ICT", "YBR_RCT") or stored.ndim != 3 or stored.shape[2] != 3:
            raise SourceError(f"(0028,0004) Photometric Interpretation {photometric} is not supported")
        bits = int(self._dataset.get("BitsStored") or self._dataset.BitsAllocated)
        if stored.dtype == np.uint8 and bits == 8:
            return stored.astype(np.uint8, copy=False)
        return np.rint(np.clip(stored / (2.0**bits - 1), 0, 1) * 255).astype(np.uint8)


def _damaged(error: Exception) -> str:
    """For elements that cannot be parsed. The error's text is left out: it may quote a value that identifies a patient."""
    return f"the DICOM file is damaged, its elements cannot be read ({type(error).__name__})"


def _reason(error: Exception) -> str:
    """The first lines of an exception as one line; the exception's type where it has no text."""
    text = " ".join(str(error).split())
    return f"{text[:300]}" if text else type(error).__name__
