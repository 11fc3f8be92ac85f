"""The overlay: drawn on every kind and size of picture, legible, and never onto the caller's pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemamba.runtime.overlay import annotate, to_rgb8
from edgemamba.runtime.predictions import TopClass

pytest.importorskip("cv2")
TOP = [TopClass(0, "Egyptian cat", 0.8731), TopClass(1, "tabby", 0.1), TopClass(2, "lynx", 0.02)]


@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    name=st.text(max_size=80),
    count=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_picture_and_any_name(height: int, width: int, channels: int, dtype: str, name: str, count: int) -> None:
    pixels = np.zeros((height, width, channels), dtype)
    drawn = annotate(pixels, [TopClass(i, name, 0.5) for i in range(count)])
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert (pixels == 0).all()
    assert (drawn.max() > 100) == (count > 0)
    if height >= 240 and width >= 240:
        assert drawn.shape[:2] == (height, width)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (720, 1280), (1080, 1920), (2160, 3840)])
def test_letters_grow_with_the_picture_and_stay_in_their_corner(height: int, width: int) -> None:
    drawn = annotate(np.full((height, width, 3), 128, np.uint8), TOP)
    letters = (drawn.min(axis=2) > 150).any(axis=1)
    rows = np.flatnonzero(letters)
    assert rows[-1] < height // 3 + height // 20
    lines = np.flatnonzero(np.diff(letters.astype(int)) == 1).size
    assert lines >= 2
    assert (drawn[height // 2 :] == 128).all()
    box = drawn[: height // 22, : width // 20]
    assert np.median(box) < 128 * 0.5  # dark behind the letters


def test_letters_are_legible_on_white() -> None:
    drawn = annotate(np.full((480, 640, 3), 255, np.uint8), TOP)
    top = drawn[:24, :200].mean(axis=2)
    assert top.max() > 200
    assert np.median(top) < 100


def test_sixteen_bits_and_floats_are_shown_at_full_scale() -> None:
    assert to_rgb8(np.array([[[0], [65535]]], np.uint16)).tolist() == [[[0] * 3, [255] * 3]]
    assert to_rgb8(np.array([[[0.0], [1.0]]], np.float32)).tolist() == [[[0] * 3, [255] * 3]]
