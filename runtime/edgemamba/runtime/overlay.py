"""The result drawn onto its frame: class and probability, readable at any size of picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.extras import require
from edgemamba.runtime.predictions import TopClass

# Pictures are enlarged until their sides allow legible letters, and widened with black where they are narrow.
_LEAST_SIDE = 240
_LEAST_WIDTH = 240
_LARGEST_SIDE = 1024  # what enlarging may not exceed

_BEST = (255, 255, 255)
_OTHERS = (176, 190, 197)
_BAR = (38, 166, 154)
_BOX_SHADE = 0.35  # of the picture that shines through the box


def annotate(pixels: NDArray[np.generic], top: Sequence[TopClass]) -> NDArray[np.uint8]:
    """Draw the classes, best first, into a darkened box at the top left.

    Args:
        pixels: a frame's pixels, (H, W, 3) or (H, W, 1); uint8, uint16 or float32 (0..1).
        top: the most probable classes; as many are drawn as fit into a third of the picture's height, and at least one.

    Returns:
        A new uint8 (H', W', 3) RGB picture. H' and W' equal H and W unless a side is too short for text: small pictures are
        enlarged by a whole factor, narrow ones are widened with black on the right.
    """
    cv2 = require("cv2", purpose="drawing results")
    canvas = _canvas(cv2, to_rgb8(pixels))
    if not top:
        return canvas
    height, width = canvas.shape[:2]
    line = int(np.clip(height / 22, 14, 80))
    count = max(1, min(len(top), height // 3 // line))
    labels = [f"{_plain(item.name)}  {100 * item.probability:.1f}%" for item in top[:count]]

    # Letters as tall as the line allows, but no longer than the picture is wide.
    margin = max(4, line // 3)
    thickness = max(1, round(line / 22))
    scale = line / 34
    widths = [cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0] for label in labels]
    room = width - 2 * margin
    if max(widths) > room:
        scale = max(scale * room / max(widths), 0.3)
        labels = [_shortened(cv2, label, scale, thickness, room) for label in labels]
        widths = [cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0] for label in labels]
    box_height = min(height, line * count + 2 * margin)
    box_width = min(width, max(max(widths) + 2 * margin, 6 * line))

    box = canvas[:box_height, :box_width]
    box[:] = (box * _BOX_SHADE).astype(np.uint8)
    for row, (item, label) in enumerate(zip(top, labels, strict=False)):
        base = margin + line * (row + 1) - max(2, line // 4)
        bar = int(box_width * float(np.clip(item.probability, 0, 1)))
        under = base + max(2, line // 8)
        cv2.rectangle(canvas, (0, under), (max(bar - 1, 0), under + max(1, line // 12)), _BAR, -1)
        colour = _BEST if row == 0 else _OTHERS
        cv2.putText(
            canvas, label, (margin, base), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, lineType=cv2.LINE_AA
        )
    return canvas


def to_rgb8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """A frame's pixels as 8-bit RGB for looking at: uint8 (H, W, 3). May share memory with ``pixels``."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _canvas(cv2: Any, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that is large enough to write on."""
    height, width = picture.shape[:2]
    factor = min(-(-_LEAST_SIDE // min(height, width)), max(1, _LARGEST_SIDE // max(height, width)))
    if factor > 1:
        picture = cv2.resize(picture, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)
    height, width = picture.shape[:2]
    canvas = np.zeros((max(height, 24), max(width, _LEAST_WIDTH), 3), np.uint8)
    canvas[:height, :width] = picture
    return canvas


def _plain(name: str) -> str:
    """OpenCV's letters are ASCII: accents are dropped, other signs become question marks."""
    decomposed = (sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
    return " ".join("".join(decomposed).encode("ascii", "replace").decode().split())


def _shortened(cv2: Any, label: str, scale: float, thickness: int, room: int) -> str:
    """The label, its name cut where it does not fit; the probability stays."""
    name, _, share = label.rpartition("  ")
    while len(name) > 1 and cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0] > room:
        name = name[:-1]
        label = f"{name.rstrip()}.. {share}"
    return label
