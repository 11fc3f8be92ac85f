"""Files that appear under their name whole and synced, or not at all, whatever kills the process or the power."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Ending of a file that is being written; what a kill leaves behind has it too.
PART = ".part"


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, beside its place; it is synced and moved there at the end of the block, unless that raises.

    Args:
        path: of the file; one of that name is replaced. Its folder must exist.
        private: readable by its owner alone (0600), as what may hold patients' data must be.

    Raises:
        OSError: it cannot be written; the one before it is as it was, and nothing else is left.
    """
    # On the same file system, for a move to be one step; hidden, and of this process alone.
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        # Of a write that failed or was interrupted; a whole one has moved.
        with contextlib.suppress(OSError):  # a full disk: what is told is the exception
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` as a :func:`whole_file`, and raise as it does."""
    with whole_file(path, private=private) as file:
        file.write(data)


def remove_parts(folder: Path, names: str = "*") -> None:
    """Remove what killed writes of files whose names match ``names`` (a pattern) have left in a folder."""
    for part in folder.glob(f".{names}.*{PART}"):
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to disk, so that a rename survives a power cut.

    Raises:
        OSError: it cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
