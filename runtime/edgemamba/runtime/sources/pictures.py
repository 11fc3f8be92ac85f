"""Pictures in files: images of the formats that OpenCV reads, DICOM files of one or many frames, and folders of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.dicom_codestreams import promised_size
from edgemamba.runtime.dicom_pixels import DicomImage, Voi, is_dicom
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import NOMINAL_FPS, DicomFrame, Frame
from edgemamba.runtime.sources.base import Source

if TYPE_CHECKING:
    from pydicom import Dataset

_NETPBM = (".pgm", ".ppm", ".pnm", ".pbm")
_OTHERS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".jp2", ".gif", ".avif")
IMAGE_SUFFIXES = frozenset((*_OTHERS, *_NETPBM))
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
#: Pixels of an image file. OpenCV decodes up to four times as many, which takes 3 GiB.
MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class _Picture:
    """One picture of a file: no pixels where it is skipped; seconds since the file's first; a header where it is DICOM."""

    pixels: NDArray[np.generic] | None
    seconds: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    header: Dataset | None = None

    def frame(self, pixels: NDArray[np.generic], index: int, start: float, name: str) -> Frame:
        if self.header is None:
            return Frame(pixels, index, start + self.seconds, name, self.metadata)
        return DicomFrame(pixels, index, start + self.seconds, name, self.metadata, self.header)


class PictureSource(Source):
    """The frames of files, one file after the other; of DICOM files :class:`~edgemamba.runtime.frames.DicomFrame`.

    Args:
        paths: image and DICOM files, in the order in which they are read.
        name: of the source.
        root: names of frames are relative to it.
        voi: how grey DICOM pictures are shown; see :data:`~edgemamba.runtime.dicom_grayscale.Voi`.
        square_pixels, overlays: of DICOM pictures; see :class:`~edgemamba.runtime.dicom_pixels.DicomImage`.

    Raises:
        SourceError: the only file cannot be read. Of several, those that cannot be read are skipped, and counted.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        root: Path | None = None,
        voi: Voi = "auto",
        square_pixels: bool = False,
        overlays: bool = False,
    ) -> None:
        super().__init__(name)
        self.files = tuple(paths)
        self._root = root
        self._voi: Voi = voi
        self._square_pixels = square_pixels
        self._overlays = overlays
        self._absent = 0  # frames that the file being read promises and does not hold
        dicom = [path for path in self.files if looks_like_dicom(path)]
        self._dicom = frozenset(dicom)
        if not dicom:
            self.length = len(self.files)
        elif len(self.files) == 1:
            with self._image(self.files[0]) as image:
                self.length = len(image)
                self.fps = image.fps

    def __iter__(self) -> Iterator[Frame]:
        read = 0
        index = 0
        start = 0.0  # of the current file on the source's clock
        for path in self.files:
            name = path.relative_to(self._root).as_posix() if self._root else path.name
            pictures = self._dicom_pictures(path) if path in self._dicom else _image_pictures(path)
            elapsed = 0.0
            while True:
                try:
                    picture = next(pictures, None)
                except SourceError as error:
                    if self.length == 1:
                        raise
                    self.skipped.add(str(error))
                    index += 1
                    break
                if picture is None:
                    break
                elapsed = picture.seconds
                if picture.pixels is not None:
                    yield picture.frame(picture.pixels, index, start, name)
                    read += 1
                index += 1
            index, self._absent = index + self._absent, 0
            start += elapsed + 1 / NOMINAL_FPS
        if not read:
            first = f"; the first: {self.skipped.reasons[0]}" if self.skipped.reasons else ""
            raise SourceError(f"{self.name}: none of its {index} pictures can be read{first}")

    def _image(self, path: Path) -> DicomImage:
        return DicomImage(path, self._voi, self._square_pixels, self._overlays)

    def _dicom_pictures(self, path: Path) -> Iterator[_Picture]:
        with self._image(path) as image:
            header = image.header
            # Where not one is whole, the first says why.
            tried = max(1, image.present)
            for index in range(tried):
                stated = image.timestamp(index)
                seconds = index / NOMINAL_FPS if stated is None else stated
                try:
                    yield _Picture(image.frame(index), seconds, image.metadata(index), header)
                except SourceError as error:
                    if len(image) == 1:
                        raise
                    self.skipped.add(str(error))
                    yield _Picture(None, seconds)
            # One line for all of them: a header may promise millions.
            self._absent = len(image) - tried
            if self._absent:
                reason = f"{path} ends after {image.present} of the {len(image)} frames that its header promises"
                self.skipped.add(reason, self._absent)


def _image_pictures(path: Path) -> Iterator[_Picture]:
    yield _Picture(read_image(path))


def read_image(path: Path) -> NDArray[np.generic]:
    """Decode an image file, turned as its EXIF orientation says.

    Returns:
        uint8 (H, W, 3) RGB; for grey images of 16 bits uint16 (H, W, 1), and of 32-bit floats in 0..1 float32 (H, W, 1).
        Transparency is dropped; colour of 16 bits is reduced to 8.

    Raises:
        SourceError: the file is missing, empty, cut short, not an image, of floats beyond 0..1, or a JPEG, PNG or JPEG 2000
            file of more than :data:`MOST_PIXELS`.
    """
    cv2 = require("cv2", purpose="reading images")
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    if not data.size:
        raise SourceError(f"{path} is empty (0 bytes)")
    height, width = _stated_size(data[: 1 << 20].tobytes())
    if height * width > MOST_PIXELS:
        raise SourceError(
            f"{path} says it has {width} x {height} pixels; images of up to {MOST_PIXELS} pixels are read"
        )
    if is_cut_short(data.tobytes()):
        raise SourceError(f"{path} is cut short: the image's end is missing")
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise SourceError(f"{path} is damaged, or no image that OpenCV can decode")
    return _to_frame_pixels(pixels, path)


def _to_frame_pixels(pixels: NDArray[Any], path: Path) -> NDArray[np.generic]:
    """OpenCV's decoded array to one of the kinds of pixels that a Frame has."""
    colour = pixels.ndim == 3 and pixels.shape[2] >= 3
    if pixels.dtype == np.uint8:
        rgb = pixels[..., 2::-1] if colour else np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, axis=2)
        return np.ascontiguousarray(rgb)
    if pixels.dtype == np.uint16:
        if colour:
            return np.ascontiguousarray(np.rint(pixels[..., 2::-1] / 257).astype(np.uint8))
        return pixels.reshape(*pixels.shape[:2], -1)[..., :1]
    if pixels.dtype == np.float32 and not colour:
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN too
            raise SourceError(f"{path} holds floats beyond 0..1; scale them, for their black and white are not known")
        return pixels.reshape(*pixels.shape[:2], -1)[..., :1]
    raise SourceError(f"{path} holds {pixels.dtype} pixels of shape {pixels.shape}, which cannot be used")


def _stated_size(start: bytes) -> tuple[int, int]:
    """Height and width by the header of a JPEG, PNG or JPEG 2000 file; 0 where it is of another kind."""
    if start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) >= 24:
        return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")
    promised = promised_size(start)
    return promised[:2] if promised is not None else (0, 0)


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. Decoders fill the missing part with grey, or complain on stderr by themselves."""
    if data.startswith(b"\xff\xd8\xff"):
        # The last scan must be closed; thumbnails inside the header have markers of their own.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    return data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" not in data


def pictures_in(folder: Path) -> tuple[list[Path], int]:
    """All image and DICOM files below a folder, in natural order (``slice_2`` before ``slice_10``), and how many other files.

    Images are known by their suffix, DICOM files by their prefix whatever they are called. Hidden files and folders and
    DICOMDIR indices are left out.
    """
    found: list[Path] = []
    others = 0
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES or (path.name.upper() != "DICOMDIR" and looks_like_dicom(path)):
            found.append(path)
        else:
            others += 1
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix())), others


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key in which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


def looks_like_dicom(path: Path) -> bool:
    """By suffix or by prefix; a file that cannot be opened is left for its reader to complain about."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return False
    try:
        return is_dicom(path)
    except OSError:
        return False
