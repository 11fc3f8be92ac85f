"""Preprocessing: the pixels that torchvision's and timm's evaluation transforms give, for every dtype and shape of picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.resampling import resample

skimage_data = pytest.importorskip("skimage.data")
# Pictures that scikit-image's wheel carries: photographs, textures and a scanned page, larger and smaller than 256.
PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "page", "grass")


def picture(name: str) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = getattr(skimage_data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("size", "interpolation", "crop_pct"),
    [
        ((224, 224), "bicubic", 0.875),
        ((224, 224), "bilinear", 0.95),
        ((96, 160), "bicubic", 0.9),  # not square: timm keeps the ratio with another rounding
        ((384, 384), "bicubic", 1.0),  # enlarges most of them
    ],
)
def test_equals_timms_evaluation_transform(
    name: str, size: tuple[int, int], interpolation: str, crop_pct: float
) -> None:
    """Within 0.35 grey levels on average and 16 at worst (an enlarged edge): Pillow rounds and clips after each axis."""
    timm_data = pytest.importorskip("timm.data")
    image = pytest.importorskip("PIL.Image")
    transform = timm_data.create_transform((3, *size), interpolation=interpolation, crop_pct=crop_pct, mean=0, std=1)
    pixels = picture(name)
    expected = np.asarray(transform(image.fromarray(pixels))).transpose(1, 2, 0) * 255
    recipe = Preprocessing(size=size, interpolation=interpolation, crop_pct=crop_pct)

    error = np.abs(recipe.fit(pixels).astype(np.float32) - expected)

    assert error.mean() < 0.35
    assert error.max() <= 16


def test_squash_equals_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = picture("coffee")
    expected = np.asarray(image.fromarray(pixels).resize((160, 96), image.Resampling.BICUBIC)).astype(int)
    fitted = Preprocessing(size=(96, 160), resize="squash").fit(pixels)
    assert np.abs(fitted - expected).mean() < 0.35


def test_squash_crop_equals_timm() -> None:
    timm_data = pytest.importorskip("timm.data")
    image = pytest.importorskip("PIL.Image")
    options = {"interpolation": "bicubic", "crop_pct": 0.93}
    transform = timm_data.create_transform((3, 96, 96), crop_mode="squash", mean=0, std=1, **options)
    pixels = picture("coffee")
    expected = np.asarray(transform(image.fromarray(pixels))).transpose(1, 2, 0) * 255
    fitted = Preprocessing(size=(96, 96), resize="squash_crop", **options).fit(pixels)
    assert np.abs(fitted - expected).mean() < 0.35


def test_sixteen_bits_reach_the_input() -> None:
    """A ramp of 4000 of 65535 levels becomes 16 of 255 in 8 bits; a uint16 input must keep hundreds."""
    ramp = np.linspace(20000, 24000, 512).astype(np.uint16)[None, :, None].repeat(512, axis=0)
    assert len(np.unique(Preprocessing(dtype="uint16").fit(ramp))) > 200
    assert len(np.unique(Preprocessing(dtype="uint8").fit(ramp))) < 20
    unit = Preprocessing(dtype="float32").fit(ramp)
    assert unit.dtype == np.float32
    assert 0 < unit.min() < unit.max() < 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("source", ["uint8", "uint16", "float32"])
def test_full_scales_map_onto_each_other(source: str, dtype: str) -> None:
    full = {"uint8": 255, "uint16": 65535, "float32": 1.0}
    pixels = np.zeros((64, 64, 1), source)
    pixels[32:] = full[source]
    for resize, size in (("squash", (64, 64)), ("squash", (32, 32)), ("center_crop", (32, 32))):
        fitted = Preprocessing(size=size, resize=resize, dtype=dtype).fit(pixels)
        assert fitted.dtype == dtype
        assert fitted.flags.c_contiguous
        assert fitted.shape == (*size, 3)
        assert (fitted[0] == 0).all()
        np.testing.assert_allclose(fitted[-1], full[dtype], rtol=1e-6)


def test_grey_is_repeated_and_equal_sizes_are_untouched() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    recipe = Preprocessing(size=(64, 64), resize="squash")
    assert (recipe.fit(pixels) == pixels).all()
    assert (recipe.fit(pixels[..., 0]) == pixels[..., :1]).all()


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop_pct=st.floats(0.5, 1),
    resize=st.sampled_from(["squash", "squash_crop", "center_crop"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@settings(max_examples=60, deadline=None)
def test_constant_pictures_stay_constant(
    height: int, width: int, size: tuple[int, int], crop_pct: float, resize: str, interpolation: str
) -> None:
    """Weights sum to one, whatever the shapes: catches any output that misses a source pixel or leaves a gap."""
    recipe = Preprocessing(size=size, crop_pct=crop_pct, resize=resize, interpolation=interpolation)
    fitted = recipe.fit(np.full((height, width, 3), 77, np.uint8))
    assert fitted.shape == (*size, 3)
    assert (fitted == 77).all()


def test_a_crop_is_the_crop_of_the_whole() -> None:
    pixels = picture("camera")
    whole = resample(pixels, (100, 130), "bicubic")
    part = resample(pixels, (100, 130), "bicubic", (11, 29, 40, 50))
    np.testing.assert_allclose(part, whole[11:51, 29:79], atol=1e-3)


def test_a_needle_costs_no_more_than_its_crop() -> None:
    """1 x 100000 pixels would be 256 x 25.6 million when resized whole."""
    fitted = Preprocessing().fit(np.full((1, 100_000, 3), 9, np.uint8))
    assert (fitted == 9).all()


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), int)]
)
def test_what_is_no_picture_is_refused(pixels: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"picture|pixels are"):
        Preprocessing().fit(pixels)
