"""A mask to look at: three slices at right angles with the labels over them, and what there is of each."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.volumes.grids import Turn
from edgemamba.runtime.volumes.reading import Study
from edgemamba.runtime.volumes.segmenting import Segmentation
from edgemamba.runtime.whole_files import write_whole

__all__ = ["colours", "overview", "write_overview"]

# Slices are seen as radiologists do: the patient's right at the left of the picture, the head or the face at its top.
_SEEN = "SPL"
_HEIGHT = 384  # pixels of the tallest panel
_OPACITY = 0.45
_GAP = 8
_LINE = 22
_GREY = (1.0, 99.5)  # percentiles shown black and white


def colours(count: int) -> NDArray[np.uint8]:
    """RGB of ``count`` labels, neighbours far apart in hue: uint8 (count, 3)."""
    hues = [(0.02 + index * 0.618034) % 1 for index in range(count)]
    return np.array([[round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0)] for hue in hues], np.uint8)


def check_pixels(path: Path, study: Study, include_phi: bool) -> None:
    """Whether a picture of the study may be written to ``path``.

    Raises:
        SinkError: the source states that annotation is burned into its pixels, and ``include_phi`` was not given.
    """
    if not include_phi and any(plane.header.get("BurnedInAnnotation") == "YES" for plane in study.planes):
        raise SinkError(f"{path}: the source's pixels show who it is (0028,0301), so no picture of it is written")


def write_overview(path: Path, result: Segmentation, include_phi: bool) -> None:
    """Write :func:`overview` as PNG.

    Raises:
        SinkError: it cannot be written, or as :func:`check_pixels` says.
    """
    check_pixels(path, result.study, include_phi)
    cv2 = require("cv2", purpose="drawing results")
    done, png = cv2.imencode(".png", np.ascontiguousarray(overview(result)[..., ::-1]))
    try:
        if not done:
            raise OSError("the picture cannot be encoded")
        write_whole(path, png.tobytes(), private=True)
    except OSError as error:
        raise SinkError(f"{path} cannot be written: {error.strerror or error}") from None


def overview(result: Segmentation) -> NDArray[np.uint8]:
    """The axial, coronal and sagittal slice through the middle of what is labelled, and a legend: uint8 (H, W, 3) RGB."""
    cv2 = require("cv2", purpose="drawing results")
    turn = Turn.to(result.study.grid, _SEEN)
    values, mask = turn.apply(result.study.channels[0]), turn.apply(result.mask)
    steps = turn.grid(result.study.grid).steps
    low, high = np.percentile(values[:: max(1, len(values) // 32), ::2, ::2], _GREY)
    palette = colours(len(result.labels))
    cut = [_middle((mask != 0).sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    tallest = max(side * step for side, step in zip(mask.shape, steps, strict=True))
    panels = []
    for axis in range(3):
        grey, label = np.take(values, cut[axis], axis), np.take(mask, cut[axis], axis)
        if axis:  # slices across start at the feet
            grey, label = np.flipud(grey), np.flipud(label)
        down, across = (step for i, step in enumerate(steps) if i != axis)
        scale = _HEIGHT / tallest
        size = (max(1, round(grey.shape[1] * across * scale)), max(1, round(grey.shape[0] * down * scale)))
        unit = np.clip((grey - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
        shown = np.repeat(cv2.resize(unit, size, interpolation=cv2.INTER_LINEAR)[..., None], 3, axis=2)
        over = cv2.resize(np.ascontiguousarray(label, np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = over > 0
        shown[inside] = (1 - _OPACITY) * shown[inside] + _OPACITY * palette[over[inside] - 1] / 255
        panel = np.zeros((_HEIGHT, size[0], 3), np.uint8)
        panel[: shown.shape[0]] = np.rint(np.clip(shown[:_HEIGHT], 0, 1) * 255)
        panels += [panel, np.zeros((_HEIGHT, _GAP, 3), np.uint8)]
    picture = np.concatenate(panels[:-1], axis=1)
    legend = np.zeros((_LINE * max(1, len(result.labels)) + _GAP, picture.shape[1], 3), np.uint8)
    for row, (label_figures, colour) in enumerate(zip(result.labels, palette, strict=True)):
        base = _GAP + _LINE * row
        cv2.rectangle(legend, (_GAP, base), (_GAP + _LINE - 8, base + _LINE - 8), colour.tolist(), -1)
        name = label_figures.name.encode("ascii", "replace").decode()
        text = f"{name}  {label_figures.ml:.2f} ml"
        place = (2 * _GAP + _LINE, base + _LINE - 9)
        cv2.putText(legend, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([picture, legend])


def _middle(counts: NDArray[np.int64]) -> int:
    """The slice at which half of what is counted is passed; the middle one of nothing."""
    passed = np.cumsum(counts)
    return int(np.searchsorted(passed, passed[-1] / 2)) if passed[-1] else len(counts) // 2
