"""From a decoded picture to a normalised tensor: random for training, the device's own path for evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from timm.data import create_transform
from torch import Tensor

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.preprocessing import FULL_SCALE, Preprocessing

#: (H, W, 3 or 1) uint8, uint16 or float32 (0..1) -> float32 (3, H, W), normalised.
Transform = Callable[[NDArray[np.generic]], Tensor]


class Augmentation(BaseModel):
    """What is done at random to a training picture, in the terms of timm's ``create_transform``.

    Attributes:
        enabled: False trains on the evaluation pixels.
        crop_scale: smallest share of the picture's area that the random resized crop keeps.
        hflip, vflip: probability of a left-right and an upside-down flip. Left-right is wrong where the side matters
            (a liver, a laterality label).
        color_jitter: largest relative change of brightness, contrast and saturation.
        auto_augment: a policy of timm's (``rand-m9-mstd0.5-inc1``), for 8-bit pictures; it replaces the colour jitter.
        random_erasing: probability of erasing a rectangle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    crop_scale: float = Field(default=0.25, gt=0, le=1)
    hflip: float = Field(default=0.5, ge=0, le=1)
    vflip: float = Field(default=0.0, ge=0, le=1)
    color_jitter: float = Field(default=0.2, ge=0, le=1)
    auto_augment: str | None = None
    random_erasing: float = Field(default=0.0, ge=0, le=1)


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The device's own path: :meth:`Preprocessing.fit`, then the normalisation that the exported graph does."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    scale = FULL_SCALE[preprocessing.dtype]

    def transform(pixels: NDArray[np.generic]) -> Tensor:
        fitted = preprocessing.fit(pixels).astype(np.float32)
        return (torch.from_numpy(fitted).permute(2, 0, 1) / scale - mean) / std

    return transform


def training_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """timm's training transform to the same size and normalisation.

    8-bit pictures go through Pillow as everywhere else. Deeper ones go through torchvision's tensor path as floats
    of 0..1, so that no 8-bit step comes between the file and the model.

    Raises:
        DataError: an ``auto_augment`` policy, which is defined on 8-bit pictures only, with deeper ones; or one
            that timm does not know.
    """
    if not augmentation.enabled:
        return evaluation_transform(preprocessing)
    deep = preprocessing.dtype != "uint8"
    if deep and augmentation.auto_augment:
        raise DataError(
            f"auto-augment policies are defined on 8-bit pictures, and these are {preprocessing.dtype}: leave the policy out"
        )
    try:
        augment = create_transform(
            (3, *preprocessing.size),
            is_training=True,
            scale=(augmentation.crop_scale, 1.0),
            hflip=augmentation.hflip,
            vflip=augmentation.vflip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.auto_augment,
            # On tensors a bicubic filter overshoots 0..1, which the colour jitter does not accept.
            interpolation="bilinear" if deep else preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=augmentation.random_erasing,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(f"timm does not know the augmentation {augmentation.auto_augment!r}: {error}") from None

    def transform(pixels: NDArray[np.generic]) -> Tensor:
        rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        if not deep:
            picture = rgb if rgb.dtype == np.uint8 else np.rint(_unit(rgb) * 255).astype(np.uint8)
            result: Tensor = augment(Image.fromarray(np.ascontiguousarray(picture)))
        else:
            result = augment(torch.from_numpy(_unit(rgb)).permute(2, 0, 1))
        return result

    return transform


def _unit(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Values of 0..1."""
    values: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(FULL_SCALE[str(pixels.dtype)])
    return np.clip(values, 0, 1)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Draw from ``random``, NumPy and torch (CPU) as if freshly seeded with ``entropy``; afterwards they go on as before.

    timm's transforms draw from all three. Seeding each picture by (seed, epoch, index) makes augmentation independent of
    the number of workers and of where a run was interrupted.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second = np.random.SeedSequence(entropy).generate_state(2).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.random.default_generator.manual_seed(first)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
