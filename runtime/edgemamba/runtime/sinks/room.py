"""How much may still be written: encoders of video do not say that the disk is full, so it is asked before each frame."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

__all__ = ["bytes_left"]


def bytes_left(path: Path) -> int | None:
    """Bytes by which a file can grow: the file system's free space, or what this process's file size limit leaves.

    Returns:
        None where nobody tells (the file is no plain file). Quotas are seen only where the file system reports them as
        free space.
    """
    if not path.is_file():
        return None
    try:
        free = shutil.disk_usage(path.parent).free
        size = path.stat().st_size
    except OSError:
        return None
    limit = _size_limit()
    return free if limit is None else min(free, max(0, limit - size))


def _size_limit() -> int | None:
    """RLIMIT_FSIZE, where there is one."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft
