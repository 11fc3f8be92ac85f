"""The model of a checkpoint that is to be used as it is: ours, which says what it is of, or an official one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train.checkpoint import METADATA_KEY, count_classes, load_checkpoint, read_training_checkpoint
from edgemamba.train.checkpoint_files import read_file
from edgemamba.train.models.model import Model
from edgemamba.train.registry import create_model
from edgemamba.train.resuming import SETTINGS_KEY


@dataclass(frozen=True)
class OpenedCheckpoint:
    """What a checkpoint holds.

    Attributes:
        model: with its weights.
        official: the file did not say its model; what it was made from are the name and the options that were given.
        class_names: empty where the file names none.
        settings: of the run that wrote it, as JSON has them; empty where the file does not say.
    """

    model: Model
    official: bool
    class_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def open_checkpoint(
    path: Path, name: str | None = None, options: Mapping[str, Any] = MappingProxyType({})
) -> OpenedCheckpoint:
    """Open a checkpoint for evaluation or export.

    Args:
        path: of the file.
        name: the registered model that an official checkpoint is of; one of ours says it itself.
        options: of an official model's configuration; the classes are those of its classifier, if they are not among them. One
            of ours has its own, and takes no notice of them: see :attr:`OpenedCheckpoint.official`.

    Raises:
        CheckpointError: it cannot be read, does not fit, does not say its model and none is named, or is of another one.
        ModelError: there is no such model, or it has no such option.
    """
    content = read_file(path)
    if METADATA_KEY in content:
        model, class_names, _ = read_training_checkpoint(path)
        if name not in (None, model.model_name):
            raise CheckpointError(f"{path} is of {model.model_name}, not {name}")
        settings = content.get(SETTINGS_KEY)
        return OpenedCheckpoint(model, False, tuple(class_names), settings if isinstance(settings, Mapping) else {})
    if name is None:
        raise CheckpointError(f"{path} does not say which model it is of: add --model (names: edgemamba models)")
    classes = count_classes(content, path, name)
    official: Model = create_model(name, **{**({} if classes is None else {"num_classes": classes}), **options})
    report = load_checkpoint(official, path)
    # A resized position embedding or a fresh classifier is a start for fine-tuning, not a model to judge or to put on a device.
    if report.adapted:
        key, how = next(iter(report.adapted.items()))
        raise CheckpointError(f"{path} does not fit {name} as configured: {key}: {how}")
    return OpenedCheckpoint(official, True)
