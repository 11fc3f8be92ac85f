"""From a frame back to the DICOM instance that it was decoded from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemamba.runtime.dicom_files import BoundedFile
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.pictures import looks_like_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

# Values longer than this are left in the file: a header is kept in memory as long as its frames are.
_LARGEST_VALUE = 1 << 16


@dataclass(frozen=True)
class DicomFrame(Frame):
    """A frame of a DICOM instance, with the instance's header for those who write DICOM objects about it.

    The header identifies the patient. It is no part of :attr:`metadata`, is not printed, and reaches no sink but DICOM's.

    Attributes:
        header: the instance's data set without its pixel data.
    """

    header: Dataset | None = field(default=None, repr=False, compare=False)


def read_header(path: Path) -> Dataset:
    """The data set of a DICOM file without pixel data and without values longer than 64 KiB.

    Raises:
        SourceError: it cannot be parsed.
    """
    pydicom = require("pydicom", purpose="reading DICOM files")
    try:
        with BoundedFile(path) as file:
            dataset: Dataset = pydicom.dcmread(file, stop_before_pixels=True, defer_size=_LARGEST_VALUE, force=True)
            large = [element.tag for element in dataset.values() if _length(element) > _LARGEST_VALUE]
            for tag in large:
                del dataset[tag]
    except SourceError:
        raise
    except Exception as error:  # any parser may stumble over damaged bytes
        raise SourceError(f"{path.name}: the header cannot be read ({type(error).__name__})") from None
    return dataset


def _length(element: Any) -> int:
    """Of a value as it stands in the file; sequences and what was parsed already count as short."""
    length = getattr(element, "length", 0)
    return 0 if length == 0xFFFFFFFF else int(length)


class Origins:
    """Headers of the instances behind a source's frames, read once per file.

    Frames that know their header (:class:`DicomFrame`) are asked; those of files are found by the file's name.

    Args:
        source: where the frames come from.
    """

    def __init__(self, source: Source) -> None:
        self._files = source.files
        self._dicom = any(looks_like_dicom(path) for path in source.files)
        self._by_name: dict[str, Path | None] | None = None
        self._last: tuple[Path, Dataset] | None = None

    @property
    def possible(self) -> bool:
        """Whether some of the source's files, as far as they are known beforehand, are DICOM."""
        return self._dicom

    def header(self, frame: Frame) -> Dataset | None:
        """The header behind a frame; None for frames that were not DICOM, or of two files of the same name."""
        if isinstance(frame, DicomFrame):
            return frame.header
        path = self._path(frame.source)
        if path is None or not looks_like_dicom(path):
            return None
        if self._last is None or self._last[0] != path:
            self._last = (path, read_header(path))
        return self._last[1]

    def _path(self, name: str) -> Path | None:
        if self._by_name is None:
            self._by_name = {}
            for path in self._files:
                # A frame is named by its path below the source's root, whichever that is.
                for start in range(len(path.parts)):
                    tail = "/".join(path.parts[start:])
                    self._by_name[tail] = None if tail in self._by_name else path
        return self._by_name.get(name)
