"""Checkpoints that are whole or not there: written beside their place, brought to disk, and moved."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.whole_files import whole_file

#: The numbers of errors that mean that there is no room: disk, quota, largest file.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's way to checkpoint files, with a write that a kill, a power cut or a full disk cannot spoil.

    Lightning's own collects the file in memory, writes it to the system's temporary folder and moves it; where that is another
    file system the move is a copy, and a kill in the middle of it leaves half of a checkpoint in the place of the last one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``. Errors as in :func:`write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file that appears under its name whole and synced, or not at all; one of that name is replaced.

    Raises:
        TrainingError: it cannot be written; the one before it is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch.save ends the file after a failed write too, and fails at that with an error of its own.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise TrainingError(
            f"{path} cannot be written: {reason.strerror}; the checkpoint before it is intact: make room, then go on with "
            "--resume auto"
        ) from None
