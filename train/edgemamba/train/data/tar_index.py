"""Where the members of a tar file lie, found once, so that any of them can be read at random.

Shards come from elsewhere. Nothing is ever unpacked to a path that a shard names; members that are not plain files are
refused by name, and what a header can make the reader allocate has a limit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgemamba.runtime.errors import DataError

#: Bytes of one member; pictures are far smaller, and one is held in memory as a whole.
LARGEST_MEMBER = 1 << 30
# Extended headers (PAX, GNU long names) are read whole; real ones have some hundred bytes.
_LARGEST_HEADER = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_VERSION = 1


@dataclass(frozen=True)
class Member:
    """A file in a tar: its path there, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int

    def read(self, shard: BinaryIO) -> bytes:
        """Its bytes."""
        shard.seek(self.offset)
        return shard.read(self.size)


def tar_members(shard: Path) -> tuple[Member, ...]:
    """Every file in a tar, in the order of the tar.

    The index of a shard is kept in the user's cache folder (``$XDG_CACHE_HOME/edgemamba/shards``) and used again as
    long as the shard's path, size and time of change are the same: walking a shard means a seek for every member.

    Raises:
        DataError: the file is no tar, is compressed, is cut short, or has a member that is no plain file, lies outside
            (an absolute path, ``..``) or is too large.
    """
    try:
        stat = shard.stat()
        kept = _index_file(f"{shard.resolve()}|{stat.st_size}|{stat.st_mtime_ns}")
        if (members := _load(kept, stat.st_size)) is None:
            members = tuple(_walk(shard, stat.st_size))
            _save(kept, members)
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror}") from None
    return members


class _Headers(io.FileIO):
    """A tar as tarfile sees it while it walks: it reads headers only, and no header is long."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _walk(shard: Path, length: int) -> Iterator[Member]:
    with shard.open("rb") as file:
        if kind := _COMPRESSED.get(file.read(2)):
            raise DataError(
                f"{shard} is compressed ({kind}); pictures hardly shrink, and only a plain .tar can be read at random"
            )
    try:
        with _Headers(shard) as headers, tarfile.open(fileobj=headers, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if info.isdir():
                    continue
                _check(shard, info, length)
                yield Member(info.name, info.offset_data, info.size)
            # tarfile takes a damaged header for the end.
            headers.seek(tar.offset)
            if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"{shard} is damaged or cut short: there is no sound header or end mark at byte {tar.offset}"
                )
    except (tarfile.TarError, EOFError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise DataError(f"{shard} is damaged, or no tar: {error}") from None


def _check(shard: Path, info: tarfile.TarInfo, length: int) -> None:
    path = PurePosixPath(info.name)
    if not info.isreg() or info.issparse():
        kind = (
            "a link" if info.issym() or info.islnk() else "a sparse file" if info.issparse() else "a device or the like"
        )
        raise DataError(f"{shard}: {info.name!r} is {kind}; a shard holds plain files")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{shard}: {info.name!r} leads out of the shard")
    if not 0 <= info.size <= LARGEST_MEMBER:
        raise DataError(f"{shard}: {info.name!r} says it has {info.size} bytes; up to {LARGEST_MEMBER} are read")
    if info.offset_data + info.size > length:
        raise DataError(f"{shard} is cut short: it ends within {info.name!r}")


def _index_file(stamp: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(
        root,
        "edgemamba",
        "shards",
        f"{hashlib.blake2b(stamp.encode(errors='surrogateescape'), digest_size=20).hexdigest()}.json",
    )


def _load(kept: Path, length: int) -> tuple[Member, ...] | None:
    """The members of an index; None where there is none, or not a sound one."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8", errors="surrogateescape"))
        if content["version"] != _VERSION:
            return None
        members = tuple(Member(str(name), int(offset), int(size)) for name, offset, size in content["members"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = all(0 <= member.size <= LARGEST_MEMBER and 0 <= member.offset <= length - member.size for member in members)
    return members if sound else None


def _save(kept: Path, members: tuple[Member, ...]) -> None:
    """Whole or not at all; where it cannot be written, the shard is walked again next time."""
    content = {"version": _VERSION, "members": [(member.name, member.offset, member.size) for member in members]}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(content), encoding="utf-8", errors="surrogateescape")
        draft.replace(kept)
    except OSError:
        return
