"""Logits of a whole picture or volume: at once, or by sliding windows with Gaussian blending."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.runtime.extras import require

#: Of the Gaussian by which a window's logits are weighed, as a share of the window.
SIGMA = 0.125


def slide(
    model: nn.Module | Callable[[Tensor], Tensor], pixels: Tensor, patch: Sequence[int], overlap: float
) -> Tensor:
    """Sliding windows of MONAI; the runtime has the same ones in NumPy (:mod:`edgemamba.runtime.volumes.windows`).

    Args:
        model: (B, C, *patch) -> logits (B, classes, *patch).
        pixels: (B, C, *size); where it is smaller than the patch it is padded with zeros.
        patch: of the model.
        overlap: share of a window that the next one covers again, from 0 to below 1.

    Returns:
        Logits (B, classes, *size).
    """
    inferers = require("monai.inferers", purpose="sliding-window inference")
    logits: Tensor = inferers.sliding_window_inference(
        pixels, tuple(patch), 1, model, overlap=overlap, mode="gaussian", sigma_scale=SIGMA
    )
    return logits


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(B, classes, h, w) or (B, classes, d, h, w) on the grid of the truth, linear, with half-pixel centres."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(logits, size=tuple(size), mode=mode, align_corners=False)
