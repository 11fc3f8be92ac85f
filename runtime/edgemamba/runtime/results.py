"""What a stream says of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.frames import Frame
from edgemamba.runtime.predictions import TopClass


@dataclass(frozen=True)
class Result:
    """One frame and its classes.

    Attributes:
        frame: the frame, its pixels included.
        top: the most probable classes, best first.
        logits: float32 (num_classes,).
        latency: seconds of preprocessing and inference, of the whole batch that the frame was part of.
    """

    frame: Frame
    top: tuple[TopClass, ...]
    logits: NDArray[np.float32]
    latency: float

    @property
    def label(self) -> str:
        """The most probable class's name."""
        return self.top[0].name

    @property
    def probability(self) -> float:
        """The most probable class's softmax probability."""
        return self.top[0].probability

    def to_json(self) -> dict[str, Any]:
        """One line of a JSON Lines file; holds no patient-identifying attribute beyond what the file's own name says."""
        return {
            "index": self.frame.index,
            "timestamp": round(self.frame.timestamp, 6),
            "source": self.frame.source,
            "top": [
                {"index": item.index, "class": item.name, "probability": round(item.probability, 6)}
                for item in self.top
            ],
            "latency_ms": round(1e3 * self.latency, 3),
            **({"metadata": self.frame.metadata} if self.frame.metadata else {}),
        }
