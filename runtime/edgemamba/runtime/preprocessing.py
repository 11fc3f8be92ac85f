"""From a frame of any size to the model's input. Resizing is done here; normalisation is inside the exported graph.

The same description travels from training (where it says what the model was trained on) into the bundle's manifest (where
the runtime reads it), so that a device sees the pixels the model saw.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgemamba.runtime.resampling import resample

# The largest value of each input dtype: the graph divides by it before it subtracts the mean.
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
#: An input of more pixels (8192 x 8192) is a broken or hostile manifest: one frame would take gigabytes.
MOST_PIXELS = 1 << 26


class Preprocessing(BaseModel):
    """How a picture becomes an input.

    Attributes:
        size: height and width of the input in pixels.
        resize: ``squash`` resizes straight to ``size``; ``center_crop`` resizes so that the picture, its aspect ratio kept, just
            covers ``size`` divided by ``crop_pct``, and crops the centre (timm's and torchvision's evaluation transform,
            with their roundings); ``squash_crop`` resizes to ``size`` divided by ``crop_pct`` whatever the picture's aspect ratio,
            and crops the centre (timm's crop mode "squash").
        interpolation: of the resize, antialiased as Pillow does it; see :mod:`edgemamba.runtime.resampling`.
        crop_pct: share of the resized shorter side that the crop keeps; not for ``squash``.
        mean, std: in units of the full scale (0..1), RGB order; applied inside the graph.
        dtype: of the graph's input.
        channels: 3 for RGB; a grey frame is repeated three times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash", "squash_crop", "center_crop"] = "center_crop"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    channels: Literal[3] = 3

    @model_validator(mode="after")
    def _positive(self) -> Preprocessing:
        if min(self.size) < 1:
            raise ValueError(f"size must be positive, not {self.size}")
        if math.prod(self.size) > MOST_PIXELS:
            raise ValueError(f"size {self.size} has more than {MOST_PIXELS} pixels")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        return self

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of ``height`` x ``width`` pixels is resized to, before any crop."""
        if self.resize == "squash":
            return self.size
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.size)
        if self.resize == "squash_crop":
            return target_height, target_width
        if target_height != target_width:  # timm's ResizeKeepRatio
            ratio = min(height / target_height, width / target_width)
            return round(height / ratio), round(width / ratio)
        if height <= width:  # torchvision's Resize, which cuts the longer side's fraction off
            return target_height, int(target_height * width / height)
        return int(target_width * height / width), target_width

    def fit(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Resize, crop and convert one picture.

        Args:
            pixels: (H, W, 3) RGB, (H, W, 1) or (H, W) grey; uint8, uint16 or float32 (0..1). A picture of the input's size
                keeps its values under ``squash``.

        Returns:
            The graph's input for one frame: ``dtype`` (size[0], size[1], 3), contiguous. Values are rounded once, at the
            end, so that grey pictures of 12 or 16 bits reach a uint16 or float32 input without an 8-bit step.

        Raises:
            ValueError: the array is not a picture.
        """
        picture = _as_picture(np.asarray(pixels))
        size = self.resized(*picture.shape[:2])
        top, left = (round((resized - side) / 2.0) for resized, side in zip(size, self.size, strict=True))
        if size == picture.shape[:2]:
            cropped = picture[top : top + self.size[0], left : left + self.size[1]]
        else:
            cropped = resample(picture, size, self.interpolation, (top, left, *self.size))
        fitted = _rescale(cropped, FULL_SCALE[str(picture.dtype)], self.dtype)
        return np.ascontiguousarray(np.broadcast_to(fitted, (*self.size, self.channels)))


def _as_picture(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Check the dtype, and give a grey picture (H, W) its channel axis."""
    if str(pixels.dtype) not in FULL_SCALE:
        raise ValueError(f"pixels are {pixels.dtype}; uint8, uint16 or float32 (0..1) is needed")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"a picture is (H, W), (H, W, 1) or (H, W, 3), not {pixels.shape}")
    return pixels


def _rescale(pixels: NDArray[np.generic], full_scale: float, dtype: str) -> NDArray[np.generic]:
    """Values of 0..``full_scale`` to the full scale of ``dtype``, clipped and rounded."""
    if str(pixels.dtype) == dtype and dtype != "float32":
        return pixels
    values = pixels.astype(np.float32)
    target = FULL_SCALE[dtype]
    if target != full_scale:
        values *= np.float32(target / full_scale)
    np.clip(values, 0, target, out=values)
    return values if dtype == "float32" else np.rint(values).astype(dtype)
