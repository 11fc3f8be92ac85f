"""What is evaluated: the PyTorch model of a checkpoint, or the engine of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemamba.runtime import load
from edgemamba.runtime.bundle import LOGITS, MANIFEST, Bundle
from edgemamba.runtime.engines import Engine
from edgemamba.runtime.errors import CheckpointError, EngineError
from edgemamba.train.checkpoint_opening import OpenedCheckpoint, open_checkpoint
from edgemamba.train.data.transforms import evaluation_transform
from edgemamba.train.models.backbone import Backbone


class TorchCandidate:
    """A model in PyTorch, in float32; it is put into evaluation mode where it is.

    Args:
        model: logits (B, C) from normalised pictures (B, 3, H, W).
        class_names: empty where it has none.
        label: what a table calls it.
    """

    precision = "fp32"

    def __init__(self, model: Backbone, class_names: tuple[str, ...], label: str = "pytorch") -> None:
        self.model = model.eval()
        self.class_names = class_names
        self.label = label
        self.preprocessing = model.preprocessing
        self.num_classes = model.num_classes
        # The frames are fitted already, and `squash` leaves pictures of the input's size as they are: what remains of
        # training's own transform is its normalisation.
        self._normalise = evaluation_transform(model.preprocessing.model_copy(update={"resize": "squash"}))

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.generic]) -> NDArray[np.float32]:
        pixels = torch.stack([self._normalise(frame) for frame in frames])
        logits: NDArray[np.float32] = self.model(pixels.to(next(self.model.parameters()).device)).float().cpu().numpy()
        return logits


class EngineCandidate:
    """A bundle in one of the runtime's backends.

    Args:
        engine: loaded; whoever loaded it closes it.
        label: what a table calls it; by default the backend.
    """

    def __init__(self, engine: Engine, label: str = "") -> None:
        manifest = engine.bundle.manifest
        if manifest.task != "classification":
            raise EngineError(f"{engine.bundle.path} is no classifier: its task is {manifest.task}")
        shape = next((output.shape for output in manifest.outputs if output.name == LOGITS), ())
        if len(shape) != 2 or not isinstance(shape[1], int):
            raise EngineError(f"{engine.bundle.path} is no classifier: it has no output {LOGITS} (batch, classes)")
        self.engine = engine
        self.label = label or engine.backend
        self.preprocessing = manifest.preprocessing
        self.class_names = manifest.class_names
        self.num_classes = shape[1]
        self.precision: str = manifest.precision
        extent = manifest.input.shape[0]
        self._batch = extent if isinstance(extent, int) else None

    def __call__(self, frames: NDArray[np.generic]) -> NDArray[np.float32]:
        step = self._batch or len(frames)
        parts = []
        for start in range(0, len(frames), step):
            part = frames[start : start + step]
            # A graph of a fixed batch takes no other: the last frame fills it up.
            full = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            parts.append(self.engine.predictions(self.engine.infer(full)).logits[: len(part)])
        return np.concatenate(parts)


def is_bundle(path: Path) -> bool:
    """Whether a target is a bundle's folder (or its manifest) rather than a checkpoint."""
    return path.is_dir() or path.name == MANIFEST


def open_model(
    path: Path, name: str | None, options: Mapping[str, Any], device: torch.device
) -> tuple[TorchCandidate, OpenedCheckpoint]:
    """The classifier of a checkpoint, ours or an official one, as a candidate and as it was opened.

    Args:
        path, name, options: as :func:`~edgemamba.train.checkpoint_opening.open_checkpoint` takes them.
        device: to run on.

    Raises:
        CheckpointError, ModelError: as for that function; or it is no classifier.
    """
    opened = open_checkpoint(path, name, options)
    if not isinstance(opened.model, Backbone):
        raise CheckpointError(f"{path} is no classifier: it is of {opened.model.model_name}, a segmenter")
    return TorchCandidate(opened.model.to(device), opened.class_names), opened


def open_bundle(path: Path, backend: str, threads: int) -> EngineCandidate:
    """A bundle's engine.

    Raises:
        BundleError, EngineError: it cannot be loaded, or is no classifier.
    """
    return EngineCandidate(load(Bundle.load(path), backend=backend, threads=threads))
