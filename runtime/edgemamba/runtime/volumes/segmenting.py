"""A study through an engine: sliding windows, blended logits, a mask on the source's own grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.bundle import LOGITS, Manifest
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import BundleError, EngineError
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.runtime.volumes.masks import mask_of
from edgemamba.runtime.volumes.preparing import prepare
from edgemamba.runtime.volumes.reading import Study
from edgemamba.runtime.volumes.windows import slide, window_starts

__all__ = ["LabelFigures", "Segmentation", "label_names", "segment", "volume_card"]


@dataclass(frozen=True)
class LabelFigures:
    """How much of a label there is: voxels of the source, and their volume in millilitres."""

    index: int
    name: str
    voxels: int
    ml: float


@dataclass(frozen=True)
class Segmentation:
    """A mask, and what is said of it.

    Attributes:
        study: what was segmented.
        mask: uint8, on the study's grid; 0 is the background.
        labels: of the classes from 1 on.
        windows: patches that went through the engine.
        shape: voxels along the model's axes, at its spacing.
        seconds: of preparing the input, and of the engine with blending and the way back.
    """

    study: Study
    mask: NDArray[np.uint8]
    labels: tuple[LabelFigures, ...]
    windows: int
    shape: tuple[int, int, int]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain figures; nothing of the patient."""
        return {
            "labels": [
                {"index": label.index, "name": label.name, "voxels": label.voxels, "ml": round(label.ml, 6)}
                for label in self.labels
            ],
            "voxels": list(self.mask.shape),
            "spacing_mm": [round(step, 6) for step in self.study.grid.steps],
            "orientation": self.study.grid.orientation,
            "model_voxels": list(self.shape),
            "windows": self.windows,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def volume_card(manifest: Manifest) -> VolumeCard:
    """The manifest's card.

    Raises:
        BundleError: the bundle is not one of volumes.
    """
    if manifest.volume is None:
        raise BundleError(f"{manifest.model.name} takes pictures; it cannot segment volumes")
    return manifest.volume


def label_names(manifest: Manifest) -> tuple[str, ...]:
    """One for each class; its number where the bundle has none."""
    if manifest.class_names:
        return manifest.class_names
    return ("background", *(f"label {index}" for index in range(1, int(manifest.outputs[0].shape[1]))))


def segment(
    engine: Engine,
    study: Study,
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Segmentation:
    """Segment a study.

    Besides the study and its prepared copy (float32), memory holds the mask and the logits of one row of windows.

    Args:
        engine: of a bundle of volumes.
        study: of its modalities, see :func:`~edgemamba.runtime.volumes.reading.read_volumes`.
        batch: windows that go through the engine at a time.
        progress: called with the number of windows done, and of all.

    Raises:
        BundleError: the bundle is not one of volumes.
        SourceError: at the model's spacing the volume has too many voxels.
        EngineError: the engine failed, or gave logits that are not finite.
    """
    manifest = engine.bundle.manifest
    card = volume_card(manifest)
    size = manifest.input.shape[0]
    if isinstance(size, int):  # a graph of a fixed batch
        batch = size
    began = time.perf_counter()
    ready = prepare(study, card)
    prepared = time.perf_counter()

    def predict(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        missing = size - len(windows) if isinstance(size, int) else 0
        if missing > 0:
            windows = np.concatenate([windows, np.repeat(windows[-1:], missing, axis=0)])
        logits = np.asarray(engine.infer(windows)[LOGITS], np.float32)
        if not np.isfinite(logits).all():
            raise EngineError(f"{engine.backend}: the logits of a window are not finite; try a bundle in fp32")
        return logits

    slabs = slide(
        ready.values,
        card.patch,
        predict,
        overlap=card.overlap,
        blending=card.blending,
        batch=batch,
        progress=progress,
    )
    mask = np.ascontiguousarray(ready.turn.undo(mask_of(slabs, ready.grid.shape[0], ready.turned)), np.uint8)
    names = label_names(manifest)
    counts = np.bincount(mask.ravel(), minlength=len(names))
    labels = tuple(
        LabelFigures(index, name, int(counts[index]), float(counts[index]) * study.grid.voxel_ml)
        for index, name in enumerate(names)
        if index
    )
    ended = time.perf_counter()
    return Segmentation(
        study,
        mask,
        labels,
        len(window_starts(ready.grid.shape, card.patch, card.overlap)),
        ready.grid.shape,
        {"preparing": prepared - began, "segmenting": ended - prepared},
    )
