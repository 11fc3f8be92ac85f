"""Decoded pictures kept for the next epoch, shared by all processes that load them, and never more than allowed.

A cache is a folder with one small file a picture. Loader workers and ranks of one machine share it without talking to
each other: a file appears whole or not at all, and one counter under a lock says how much is taken. What was kept
stays, and when the room is used up nothing more is taken in: each epoch asks for every picture once, so that making
room for one would only throw out another that is needed as soon.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import __version__
from edgemamba.runtime.errors import DataError
from edgemamba.runtime.preprocessing import FULL_SCALE
from edgemamba.runtime.provenance import package_version
from edgemamba.train.data.dataset import ImageDataset
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.views import PictureView

# Whatever may change a pixel: another release of a decoder finds nothing that an older one left.
_DECODERS = (
    "opencv-python-headless",
    "opencv-python",
    "pydicom",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "python-gdcm",
    "numpy",
)
_COUNTER = ".used"
# A full disk, or memory, hurts more than a picture that is decoded again.
_DISK_SHARE = 0.9
# Memory that processes share; a folder in it is gone at the latest when the machine is restarted.
_MEMORY = Path("/dev/shm")
_PREFIX = "edgemamba-cache-"


class PictureCache:
    """Decoded pictures, as they come out of the decoder: before resizing and augmentation.

    Args:
        folder: where; made if it does not exist. A folder can serve any number of data sets and runs.
        limit: bytes that all files together may take; less where the disk has less.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        versions = [f"{name} {package_version(name)}" for name in _DECODERS]
        self._salt = "|".join([f"edgemamba {__version__}", *versions])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._counter() as counter:
                used = sum(file.stat().st_size for file in folder.glob("??/*"))
                _set(counter, used)
            self.limit = min(limit, used + int(_DISK_SHARE * shutil.disk_usage(folder).free))
        except OSError as error:
            raise DataError(f"--cache {folder} cannot be written: {error.strerror}") from None

    @property
    def used(self) -> int:
        """Bytes taken by now."""
        with self._counter() as counter:
            return int(counter.read() or 0)

    def read(self, stamp: str, decode: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
        """The picture of this stamp: from the cache, or decoded and (where there is room) kept.

        What ``decode`` raises passes through, and nothing is kept. Trouble with the cache itself only costs time.
        """
        digest = hashlib.blake2b(f"{self._salt}|{stamp}".encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        path = self.folder / digest[:2] / f"{digest[2:]}.npy"
        kept = _load(path)
        if kept is not None:
            return kept
        pixels = decode()
        self._keep(path, pixels)
        return pixels

    def _keep(self, path: Path, pixels: NDArray[np.generic]) -> None:
        content = _packed(pixels)
        try:
            if not self._reserve(len(content)):
                return
            path.parent.mkdir(exist_ok=True)
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                draft.write_bytes(content)
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
        except OSError:  # the disk is full, or somebody removed the folder: go on without
            return

    def _reserve(self, count: int) -> bool:
        with self._counter() as counter:
            used = int(counter.read() or 0) + count
            if used > self.limit:
                return False
            _set(counter, used)
            return True

    @contextmanager
    def _counter(self) -> Iterator[io.FileIO]:
        """The file that says how many bytes are taken, under a lock."""
        with io.FileIO(os.open(self.folder / _COUNTER, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


class CachedPictures(PictureView):
    """A set whose pictures are decoded once."""

    def __init__(self, pictures: PictureSet, cache: PictureCache) -> None:
        self.pictures = pictures
        self.cache = cache
        self.labels = pictures.labels
        self.groups = pictures.groups

    def find(self, index: int) -> tuple[PictureSet, int]:
        return self.pictures, index

    def read(self, index: int) -> NDArray[np.generic]:
        try:
            stamp = self.pictures.stamp(index)
        except OSError:  # the reader says it better
            stamp = None
        if stamp is None:
            return self.pictures.read(index)
        return self.cache.read(stamp, lambda: self.pictures.read(index))


def cached(dataset: ImageDataset, where: str, gigabytes: float, tell: Callable[[str], None]) -> ImageDataset:
    """The same data set, decoded once.

    Args:
        dataset: pictures in memory (a ``.npz``) are left as they are.
        where: ``none``; ``ram`` for memory that the loader's processes share and that is given back at the end; or a
            folder, which later runs find filled.
        gigabytes: (of 10^9 bytes) at most. With several ranks, of ``ram`` each takes so much.

    Raises:
        DataError: the folder cannot be written.
    """
    if where.lower() == "none":
        return dataset
    in_memory = where.lower() == "ram"
    cache = PictureCache(_memory_folder() if in_memory else Path(where), int(gigabytes * 1e9))
    if in_memory:
        weakref.finalize(cache, _give_back, cache.folder, os.getpid())
    tell(f"cache: {cache.folder}, {cache.used / 1e9:.2f} of {cache.limit / 1e9:.2f} GB taken")
    return replace(dataset, parts={part: CachedPictures(found, cache) for part, found in dataset.parts.items()})


def _memory_folder() -> Path:
    """A folder in shared memory, or where there is none among the temporary files; leftovers of killed runs are removed."""
    base = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for leftover in base.glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", leftover.name)
        if owner and not Path("/proc", owner[1]).exists() and leftover.stat().st_uid == os.getuid():
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))


def _give_back(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a worker's, which was forked with the same object
        shutil.rmtree(folder, ignore_errors=True)


def _set(counter: io.FileIO, used: int) -> None:
    counter.seek(0)
    counter.truncate()
    counter.write(str(used).encode())


def _packed(pixels: NDArray[np.generic]) -> bytes:
    """An ``.npy`` file and its checksum: a disk that was full or lost power must not become pixels."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(pixels), allow_pickle=False)
    content = file.getvalue()
    return content + zlib.crc32(content).to_bytes(4, "little")


def _load(path: Path) -> NDArray[np.generic] | None:
    """The pixels of a file; None where there is none, or not a sound one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body = memoryview(content)[:-4]
    if len(content) < 4 or zlib.crc32(body) != int.from_bytes(content[-4:], "little"):
        return None
    try:
        pixels = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return pixels if pixels.ndim == 3 and str(pixels.dtype) in FULL_SCALE else None
