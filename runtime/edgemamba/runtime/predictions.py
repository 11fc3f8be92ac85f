"""What a classification engine says of a batch of frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TopClass:
    """One class of one frame: its index, its name and its softmax probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """Logits of a batch and the names of their classes.

    Attributes:
        logits: float32 (B, num_classes), as the engine returned them.
        class_names: ``num_classes`` names; class indices as text where the bundle has none.
        outputs: every output of the engine by name, ``logits`` included.
    """

    logits: NDArray[np.float32]
    class_names: tuple[str, ...]
    outputs: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax over the classes, float32 (B, num_classes)."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True, initial=-np.inf)
        exp = np.exp(shifted)
        return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)

    def top(self, row: int, k: int = 1) -> list[TopClass]:
        """The ``k`` most probable classes of frame ``row``, best first."""
        probabilities = self.probabilities[row]
        best = np.argsort(-probabilities, kind="stable")[:k]
        return [TopClass(int(i), self.class_names[i], float(probabilities[i])) for i in best]
