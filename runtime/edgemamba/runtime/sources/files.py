"""What a path names: a picture, a DICOM file or DICOMDIR, a video, a folder, a glob."""

from __future__ import annotations

import glob
from pathlib import Path

from edgemamba.runtime.dicom_grayscale import Voi
from edgemamba.runtime.dicom_series import Slice, in_slice_order, in_study_order, read_slice
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.dicomdir import is_dicomdir, referenced_files
from edgemamba.runtime.sources.pictures import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    PictureSource,
    looks_like_dicom,
    natural_key,
    pictures_in,
)
from edgemamba.runtime.uris import Uri

__all__ = ["open_dicom", "open_file", "open_path"]


def open_path(text: str, voi: Voi) -> Source:
    """A file, a folder (its pictures and DICOM series, with subfolders) or a glob.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, voi)
    if path.exists():
        return open_file(path, voi)
    if glob.has_magic(text):
        return _glob(str(path), voi)
    raise SourceError(f"{text} does not exist")


def open_file(path: Path, voi: Voi) -> Source:
    """One file, by what it holds rather than by what it is called.

    Raises:
        SourceError: it cannot be read, is empty, or neither picture nor video.
    """
    from edgemamba.runtime.sources.video import VideoSource

    _check_readable(path)
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES or suffix in IMAGE_SUFFIXES or looks_like_dicom(path):
        if is_dicomdir(path):
            return _dicomdir(path, voi)
        return PictureSource([path], path.name, voi=voi)
    if require("cv2", purpose="reading images and videos").haveImageReader(str(path)):
        return PictureSource([path], path.name, voi=voi)
    return VideoSource(path)


def open_dicom(uri: Uri, voi: Voi) -> Source:
    """``dicom://PATH``: the DICOM files of a file, folder or DICOMDIR, in the order of :mod:`edgemamba.runtime.dicom_series`.

    Options: ``modality=CT`` and ``series=3`` (Series Number) leave out all others; ``square=1``: with square pixels;
    ``overlays=1``: with the overlay planes drawn in, which are left out by default. A folder is looked through whether a
    DICOMDIR lies in it or not; name the DICOMDIR to follow it.

    Raises:
        SourceError: nothing is there, nothing that is DICOM, or nothing that the options leave.
    """
    uri.allow(("modality", "overlays", "series", "square"), SourceError)
    path = Path(uri.location).expanduser()
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    missing: list[str] = []
    if path.is_dir():
        paths = [found for found in pictures_in(path)[0] if looks_like_dicom(found)]
        root: Path | None = path
    else:
        _check_readable(path)
        paths, root = [path], None
        if is_dicomdir(path):
            paths, missing = referenced_files(path)
            root = path.parent
    if not paths:
        raise SourceError(f"{path} holds no DICOM file")
    slices = _chosen(uri, [read_slice(found) for found in paths])
    ordered = [item.path for item in in_slice_order(slices)]
    square, overlays = (uri.options.get(name, "0") not in ("0", "") for name in ("square", "overlays"))
    source = PictureSource(ordered, uri.shown if root else path.name, root, voi, square, overlays)
    _say_missing(source, path, missing)
    return source


def _chosen(uri: Uri, slices: list[Slice]) -> list[Slice]:
    modality, series = uri.options.get("modality"), uri.options.get("series")
    chosen = [
        item
        for item in slices
        if (modality is None or item.modality.upper() == modality.upper())
        and (series is None or str(item.series_number) == series)
    ]
    if not chosen:
        asked = " and ".join(f"{name}={value}" for name, value in (("modality", modality), ("series", series)) if value)
        raise SourceError(f"{uri.shown}: none of its {len(slices)} DICOM files has {asked}")
    return chosen


def _dicomdir(path: Path, voi: Voi) -> Source:
    paths, missing = referenced_files(path)
    if not paths:
        raise SourceError(f"{path} names no image that is there")
    source = PictureSource(in_study_order(paths, looks_like_dicom), str(path), path.parent, voi)
    _say_missing(source, path, missing)
    return source


def _say_missing(source: Source, path: Path, missing: list[str]) -> None:
    if missing:
        source.skipped.add(
            f"{path} names {len(missing)} files that are not there; the first: {missing[0]}", len(missing)
        )


def _folder(path: Path, voi: Voi) -> Source:
    found, others = pictures_in(path)
    if not found:
        also = f"; its {others} files are of other kinds" if others else ""
        raise SourceError(f"{path} holds no image or DICOM file{also}")
    return PictureSource(in_study_order(found, looks_like_dicom), str(path), path, voi)


def _glob(pattern: str, voi: Voi) -> Source:
    paths = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = sorted((path for path in paths if path.is_file()), key=lambda path: natural_key(str(path)))
    if not files:
        raise SourceError(f"no file matches {pattern}")
    if len(files) == 1:
        return open_file(files[0], voi)
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES or looks_like_dicom(path)]
    if not pictures:
        raise SourceError(f"none of the {len(files)} files that match {pattern} is an image or DICOM file")
    return PictureSource(in_study_order(pictures, looks_like_dicom), pattern, voi=voi)


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder")
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"{path} is empty (0 bytes)")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
