"""Patches and augmentation, on MONAI's transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgemamba.runtime.extras import require
from edgemamba.train.segmentation.cases import Case
from edgemamba.train.segmentation.masks import IGNORED, Mask
from edgemamba.train.segmentation.settings import SegmentationAugmentation

_KEYS = ("pixels", "labels")


class Augmenter:
    """From a case to a training example.

    Args:
        how: the augmentation.
        patch: size of the patches to draw; None for the whole case.
        axes: of space, 2 or 3.
    """

    def __init__(self, how: SegmentationAugmentation, patch: Sequence[int] | None, axes: int) -> None:
        transforms = require("monai.transforms", purpose="training segmenters")
        steps: list[Any] = []
        if patch is not None:
            # As many centres in the background as elsewhere; a case that has only one of them gives that.
            steps.append(
                transforms.RandCropByPosNegLabeld(_KEYS, label_key="foreground", spatial_size=patch, pos=1, neg=1)
            )
        if how.enabled:
            steps += _movements(transforms, how, axes) + _intensities(transforms, how)
        self._transform = transforms.Compose(steps)

    def __call__(self, case: Case, seed: int) -> tuple[Tensor, Mask]:
        """Draw by ``seed``: pixels float32 (C, *patch), labels uint8 of the patch's size."""
        self._transform.set_random_state(seed=seed)
        labels = torch.from_numpy(case.labels)[None]
        # What is ignored is no class that a patch should be drawn for.
        foreground = (labels != 0) & (labels != IGNORED)
        drawn = self._transform({"pixels": case.pixels, "labels": labels.float(), "foreground": foreground.float()})
        if isinstance(drawn, list):
            drawn = drawn[0]
        pixels, moved = (torch.Tensor(drawn[key].as_subclass(torch.Tensor)) for key in _KEYS)
        mask: NDArray[np.uint8] = moved[0].round().numpy().astype(np.uint8)
        return pixels.contiguous(), mask


def _movements(transforms: Any, how: SegmentationAugmentation, axes: int) -> list[Any]:
    angle = math.radians(how.rotate)
    # About the first axis of a volume: its patches are seldom cubes of one spacing.
    rotate = angle if axes == 2 else (angle, 0.0, 0.0)
    moves = [transforms.RandFlipd(_KEYS, prob=how.hflip, spatial_axis=axes - 1)]
    moves.append(transforms.RandFlipd(_KEYS, prob=how.vflip, spatial_axis=axes - 2))
    if how.rotate or how.scale:
        moves.append(
            transforms.RandAffined(
                _KEYS,
                prob=0.5,
                rotate_range=rotate,
                scale_range=(how.scale,) * axes,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            )
        )
    return moves


def _intensities(transforms: Any, how: SegmentationAugmentation) -> list[Any]:
    steps = []
    if how.intensity:
        steps.append(transforms.RandScaleIntensityd("pixels", factors=how.intensity, prob=0.5))
        steps.append(transforms.RandShiftIntensityd("pixels", offsets=how.intensity, prob=0.5))
    if how.noise:
        steps.append(transforms.RandGaussianNoised("pixels", prob=0.5, std=how.noise))
    return steps
