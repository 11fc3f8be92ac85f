"""When each frame of a multi-frame file was taken (PS3.3 C.7.6.5.1.1 and .2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset


class FrameTimes:
    """The clock of a cine: Frame Time Vector, else Frame Time, else Cine Rate.

    Takes no memory for frames: a header may promise two thousand million.

    Args:
        dataset: the file's elements.
        frames: how many the file promises.

    Attributes:
        fps: frames a second; None where the file states no times.
    """

    def __init__(self, dataset: Dataset, frames: int) -> None:
        self._frames = frames
        self._step = 0.0
        self._vector = np.empty(0)
        self.fps: float | None = None
        if frames < 2:
            return
        try:
            vector = np.atleast_1d(np.asarray(dataset.get("FrameTimeVector") or [], np.float64))
            if len(vector) == frames and np.isfinite(vector).all() and (vector[1:] >= 0).all():
                self._vector = np.concatenate([[0.0], np.cumsum(vector[1:])]) / 1000
                if self._vector[-1] > 0:
                    self.fps = float((frames - 1) / self._vector[-1])
                return
            step = float(dataset.get("FrameTime") or 0) / 1000
            rate = float(dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate") or 0)
        except (TypeError, ValueError, OverflowError):
            return
        if step <= 0 and rate > 0:
            step = 1 / rate
        if step > 0 and np.isfinite(step):
            self._step, self.fps = step, 1 / step

    def seconds(self, index: int) -> float | None:
        """Since the first frame; None where the file has no clock."""
        if len(self._vector):
            return float(self._vector[index]) if index < len(self._vector) else None
        return index * self._step if self._step and index < self._frames else None
