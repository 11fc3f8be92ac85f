"""The module that is exported: a backbone with the device's input convention around it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgemamba.runtime.preprocessing import FULL_SCALE, Preprocessing

INPUT = "frames"
OUTPUT = "logits"

TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


class DeployedModel(nn.Module):
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
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (std * FULL_SCALE[preprocessing.dtype])).float())
        self.register_buffer("offset", (-mean / std).float())

    def forward(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) RGB of the preprocessing's dtype -> float32 (B, num_classes)."""
        pixels = frames.to(torch.float32).permute(0, 3, 1, 2)
        logits: Tensor = self.model(pixels * self.scale + self.offset)
        return logits.float()


def deploy(model: nn.Module, preprocessing: Preprocessing) -> DeployedModel:
    """A float32 copy of ``model`` on the CPU, in evaluation mode and without gradients, ready to be exported.

    The caller's model is left as it is.
    """
    clone = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    return DeployedModel(clone, preprocessing).eval()
