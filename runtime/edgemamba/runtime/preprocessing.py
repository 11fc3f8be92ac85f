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

from edgemamba.runtime.extras import require

# The largest value of each input dtype: the graph divides by it before it subtracts the mean.
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


class Preprocessing(BaseModel):
    """How a picture becomes an input.

    Attributes:
        size: height and width of the input in pixels.
        resize: ``squash`` resizes straight to ``size``; ``center_crop`` resizes so that the shorter side of ``size`` divided
            by ``crop_pct`` fits the picture's shorter side, and crops the centre (timm's evaluation transform).
        interpolation: of the resize. Shrinking uses area averaging over the same support that Pillow uses for the
            filter (``antialias``), as torchvision and timm do.
        crop_pct: share of the resized shorter side that the crop keeps; only for ``center_crop``.
        mean, std: in units of the full scale (0..1), RGB order; applied inside the graph.
        dtype: of the graph's input.
        channels: 3 for RGB; a grey frame is repeated three times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash", "center_crop"] = "center_crop"
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
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        return self

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of ``height`` x ``width`` pixels is resized to, before any crop."""
        if self.resize == "squash":
            return self.size
        target = [math.floor(side / self.crop_pct) for side in self.size]
        scale = max(target[0] / height, target[1] / width)
        return max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))

    def fit(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Resize, crop and convert one picture.

        Args:
            pixels: (H, W, 3) RGB, (H, W, 1) or (H, W) grey; uint8, uint16 or float32 (0..1).

        Returns:
            The graph's input for one frame: ``dtype`` (size[0], size[1], 3), contiguous.

        Raises:
            ValueError: the array is not a picture.
        """
        picture = _as_rgb(_as_dtype(np.asarray(pixels), self.dtype))
        height, width = picture.shape[:2]
        new_height, new_width = self.resized(height, width)
        if (new_height, new_width) != (height, width):
            picture = resize(picture, new_height, new_width, self.interpolation)
        top = (picture.shape[0] - self.size[0]) // 2
        left = (picture.shape[1] - self.size[1]) // 2
        return np.ascontiguousarray(picture[top : top + self.size[0], left : left + self.size[1]])


def resize(picture: NDArray[np.generic], height: int, width: int, interpolation: str) -> NDArray[np.generic]:
    """Resize a picture (H, W, 3) with OpenCV, averaging areas where it shrinks by two or more in both directions.

    OpenCV's bilinear and bicubic filters look at 2x2 and 4x4 source pixels whatever the scale, which aliases when
    shrinking; a first pass of area averaging to at most twice the target size takes the aliasing away at a cost that is
    small beside a wide filter's.
    """
    cv2 = require("cv2", purpose="resizing pictures")
    flags = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    if picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=flags[interpolation])
    return picture


def _as_dtype(pixels: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """Convert between the full scales of uint8, uint16 and float32 (0..1)."""
    if str(pixels.dtype) not in FULL_SCALE:
        raise ValueError(f"pixels are {pixels.dtype}; uint8, uint16 or float32 (0..1) is needed")
    if str(pixels.dtype) == dtype:
        return pixels
    unit = pixels.astype(np.float32) / np.float32(FULL_SCALE[str(pixels.dtype)])
    if dtype == "float32":
        return unit
    return np.rint(np.clip(unit, 0, 1) * np.float32(FULL_SCALE[dtype])).astype(dtype)


def _as_rgb(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """(H, W), (H, W, 1) or (H, W, 3) to (H, W, 3)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"a picture is (H, W), (H, W, 1) or (H, W, 3), not {pixels.shape}")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
