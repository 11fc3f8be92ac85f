"""The module that is exported: a model with the device's input convention around it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemamba.runtime.preprocessing import FULL_SCALE, Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard

INPUT = "frames"
OUTPUT = "logits"

TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}

#: How the input is made: of pictures, or of volumes.
Recipe = Preprocessing | VolumeCard


class Deployed(nn.Module, ABC):
    """What is exported; ``model`` is the wrapped one, in float32.

    Attributes:
        dtype: of the input, as a bundle names it.
    """

    model: nn.Module
    dtype: str

    @abstractmethod
    def extents(self) -> tuple[int, ...]:
        """Shape of one element of the input's batch."""

    @abstractmethod
    def sample(self, batch: int) -> NDArray[np.generic]:
        """Seeded noise that is an input."""

    def example(self, batch: int) -> Tensor:
        """An input of zeros, to trace with."""
        return torch.zeros(batch, *self.extents(), dtype=TORCH_DTYPES[self.dtype])


class DeployedModel(Deployed):
    """A backbone that takes frames as cameras and decoders give them, and returns float32 logits.

    Scaling to 0..1, normalisation and the change of layout are part of the graph, so that no runtime can get them wrong.
    They are one multiplication and one addition, in float32. The cast comes first because TensorRT allows nothing else on an
    8-bit input, and the channels are moved before the arithmetic because a broadcast over the innermost three values is
    slow everywhere.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.dtype = preprocessing.dtype
        self._extents = (*preprocessing.size, preprocessing.channels)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (std * FULL_SCALE[preprocessing.dtype])).float())
        self.register_buffer("offset", (-mean / std).float())

    def extents(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self._extents

    def sample(self, batch: int) -> NDArray[np.generic]:
        """Noise over the full scale."""
        noise = np.random.default_rng(0).random((batch, *self._extents))
        return (noise * FULL_SCALE[self.dtype]).astype(self.dtype)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) RGB of the preprocessing's dtype -> float32 (B, num_classes), of segmenters (B, num_classes, H, W)."""
        pixels = frames.to(torch.float32).permute(0, 3, 1, 2)
        logits: Tensor = self.model(pixels * self.scale + self.offset)
        return logits.float()


class DeployedVolumeModel(Deployed):
    """A segmenter of volumes. Its input comes normalised: most normalisations need the whole volume, of which it sees patches."""

    dtype = "float32"

    def __init__(self, model: nn.Module, card: VolumeCard) -> None:
        super().__init__()
        self.model = model
        self._extents = (len(card.modalities), *card.patch)

    def extents(self) -> tuple[int, ...]:
        """(C, D, H, W)."""
        return self._extents

    def sample(self, batch: int) -> NDArray[np.generic]:
        """Normal noise: what normalisation makes of a volume is of that scale."""
        return np.random.default_rng(0).standard_normal((batch, *self._extents), np.float32)

    def forward(self, frames: Tensor) -> Tensor:
        """float32 (B, C, D, H, W) -> float32 (B, num_classes, D, H, W)."""
        logits: Tensor = self.model(frames)
        return logits.float()


def deploy(model: nn.Module, recipe: Recipe) -> Deployed:
    """A float32 copy of ``model`` on the CPU, in evaluation mode and without gradients, ready to be exported.

    The caller's model is left as it is.
    """
    clone = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    wrapped = DeployedVolumeModel(clone, recipe) if isinstance(recipe, VolumeCard) else DeployedModel(clone, recipe)
    return wrapped.eval()
