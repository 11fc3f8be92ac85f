"""Where frames come from. :func:`open_source` picks the source from its argument."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgemamba.runtime.dicom_grayscale import Voi
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.pictures import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    PictureSource,
    looks_like_dicom,
    natural_key,
    pictures_in,
)

__all__ = ["Source", "open_source"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_source(source: str | int | Path, *, voi: Voi = "auto") -> Source:
    """Open whatever ``source`` names.

    Args:
        source: a camera's number or device path (``0``, ``/dev/video0``); an image, DICOM or video file, recognised by
            what it holds; a folder of images and DICOM files (with its subfolders, in natural order); a glob of such
            files; or a ``file://`` URL of one of these.
        voi: how grey DICOM pictures are shown: ``auto``, ``lut``, ``window``, ``full``, ``minmax``, or a
            :class:`~edgemamba.runtime.dicom_grayscale.Window`.

    Returns:
        An iterable of :class:`~edgemamba.runtime.frames.Frame`, which is also a context manager.

    Raises:
        SourceError: it does not exist, cannot be opened, or holds nothing that can be read; one line says which.
    """
    if isinstance(source, bool) or (isinstance(source, int) and source < 0):
        raise SourceError(f"a camera is a number from 0, not {source}")
    text = str(source)
    if isinstance(source, int) or text.isdecimal():
        return _camera(int(text))
    if match := _SCHEME.match(text):
        if match[1].lower() != "file":
            raise SourceError(
                f"sources of kind {match[1]}:// are not supported; give a camera number, or a video, image or DICOM file, "
                "folder or glob"
            )
        text = unquote(urlsplit(text).path)
    if re.fullmatch(r"/dev/video\d+", text):
        return _camera(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, voi)
    if path.exists():
        return _file(path, voi)
    if glob.has_magic(text):
        return _glob(str(path), voi)
    raise SourceError(f"{text} does not exist")


def _camera(device: int | str) -> Source:
    from edgemamba.runtime.sources.camera import CameraSource

    return CameraSource(device)


def _folder(path: Path, voi: Voi) -> Source:
    found, others = pictures_in(path)
    if not found:
        also = f"; its {others} files are of other kinds" if others else ""
        raise SourceError(f"{path} holds no image or DICOM file{also}")
    return PictureSource(found, str(path), path, voi)


def _glob(pattern: str, voi: Voi) -> Source:
    paths = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = sorted((path for path in paths if path.is_file()), key=lambda path: natural_key(str(path)))
    if not files:
        raise SourceError(f"no file matches {pattern}")
    if len(files) == 1:
        return _file(files[0], voi)
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES or looks_like_dicom(path)]
    if not pictures:
        raise SourceError(f"none of the {len(files)} files that match {pattern} is an image or DICOM file")
    return PictureSource(pictures, pattern, voi=voi)


def _file(path: Path, voi: Voi) -> Source:
    """One file, by what it holds rather than by what it is called."""
    from edgemamba.runtime.sources.video import VideoSource

    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder")
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"{path} is empty (0 bytes)")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES or suffix in IMAGE_SUFFIXES or looks_like_dicom(path):
        return PictureSource([path], path.name, voi=voi)
    if require("cv2", purpose="reading images and videos").haveImageReader(str(path)):
        return PictureSource([path], path.name, voi=voi)
    return VideoSource(path)
