"""Whether a run can go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemamba.runtime.errors import CheckpointError, TrainingError
from edgemamba.train.checkpoint import METADATA_KEY, read_file
from edgemamba.train.settings import RunSettings

#: Key of the run's settings in its checkpoints.
SETTINGS_KEY = "edgemamba_settings"
#: Key of the number of processes, and of [mean, pictures] of the training loss in an epoch that is not over.
WORLD_SIZE_KEY, LOSS_KEY = "edgemamba_world_size", "edgemamba_train_loss"


def find_checkpoint(resume: str, settings: RunSettings) -> Path:
    """The checkpoint that ``--resume`` means: a path, or ``auto`` for the run's own ``last.ckpt``.

    Raises:
        TrainingError: there is none.
    """
    path = settings.last if resume == "auto" else Path(resume)
    if not path.is_file():
        hint = "; the run was stopped before its first, or --out is another" if resume == "auto" else ""
        raise TrainingError(f"there is no checkpoint {path} to resume from{hint}")
    return path


def check_resumable(path: Path, settings: RunSettings, class_names: Sequence[str], world_size: int) -> None:
    """Refuse to resume from a checkpoint of another run, or on another number of devices than it was written on.

    Other devices would divide the batches in another way, and draw other numbers: a resumed run is the same run, or none.

    Raises:
        CheckpointError: the file is damaged, holds pickled code, or was not written by ``edgemamba train``.
        TrainingError: it was trained with other settings or on other classes, or its run is complete.
    """
    checkpoint = read_file(path)
    if not {METADATA_KEY, SETTINGS_KEY, WORLD_SIZE_KEY, LOSS_KEY, "loops", "optimizer_states"} <= set(checkpoint):
        raise CheckpointError(
            f"{path} was not written by `edgemamba train`; use it as a start with --checkpoint instead of --resume"
        )
    settings.check_same(checkpoint[SETTINGS_KEY])
    if list(checkpoint[METADATA_KEY]["class_names"]) != list(class_names):
        raise TrainingError(f"{path} was trained on other classes than those of {settings.data}")
    if checkpoint[WORLD_SIZE_KEY] != world_size:
        raise TrainingError(
            f"{path} was trained on {checkpoint[WORLD_SIZE_KEY]} devices and this run has {world_size}; resume on as many, or "
            "start a new run from its weights with --checkpoint"
        )
    # A checkpoint at an epoch's end is written just before Lightning counts the epoch; our loader counts its batches.
    (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    if loader["epoch"] >= settings.epochs:
        raise TrainingError(f"the run of {path} is complete ({loader['epoch']} epochs); a larger --epochs goes on")
