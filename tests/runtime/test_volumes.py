"""Grids, sliding windows, normalisation and the way back to the source: against MONAI, nibabel and what can be said exactly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.volumes.card import Code, Normalisation, VolumeCard
from edgemamba.runtime.volumes.grids import Grid, Turn, resize
from edgemamba.runtime.volumes.masks import mask_of
from edgemamba.runtime.volumes.preparing import normalise
from edgemamba.runtime.volumes.windows import Slab, slide, window_starts

pytest.importorskip("cv2")
ORIENTATIONS = ["".join(o) for p in itertools.permutations(("RL", "AP", "SI")) for o in itertools.product(*p)]
PATCH = (32, 24, 16)


def predict(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 2, D, H, W) -> (B, 3, D, H, W); what it says of a voxel depends on where the window stands."""
    first, second = windows[:, 0], windows[:, 1]
    return np.stack([first**2 + 0.1 * np.cumsum(second, -1), second - first, 0.1 * np.cumsum(first, 1)], 1)


# ------------------------------------------------------------------------------------------------------------ sliding windows


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize(
    "size", [(40, 50, 33), (20, 64, 31), (15, 17, 9), PATCH, (65, 20, 9)], ids=lambda size: "x".join(map(str, size))
)
def test_windows_equal_monai(size: tuple[int, int, int], overlap: float, blending: Any) -> None:
    """MONAI's sliding_window_inference, where windows fit, and where the volume is smaller than a window."""
    inferers, torch = pytest.importorskip("monai.inferers"), pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((2, *size), np.float32)
    expected = inferers.sliding_window_inference(
        torch.from_numpy(values)[None],
        PATCH,
        3,
        lambda windows: torch.from_numpy(predict(windows.numpy())),
        overlap=overlap,
        mode=blending,
    )[0].numpy()
    calls: list[tuple[int, int]] = []
    slabs = list(
        slide(
            values,
            PATCH,
            predict,
            overlap=overlap,
            blending=blending,
            batch=3,
            progress=lambda done, total: calls.append((done, total)),
        )
    )
    assert [slab.start for slab in slabs] == [0, *np.cumsum([slab.logits.shape[1] for slab in slabs])[:-1]]
    np.testing.assert_allclose(np.concatenate([slab.logits for slab in slabs], 1), expected, rtol=0, atol=1e-5)
    windows = len(window_starts(size, PATCH, overlap))
    assert calls[-1] == (windows, windows)


def test_windows_hold_one_row_at_a_time() -> None:
    """The slabs of a long volume are given as they are finished, not at the end."""
    values = np.zeros((2, 200, 24, 16), np.float32)
    seen: list[int] = []

    def counting(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(windows))
        return predict(windows)

    slabs = slide(values, PATCH, counting, overlap=0.5)
    first = next(slabs)
    assert (first.start, first.logits.shape[1], len(seen)) == (0, 16, 1)


# ---------------------------------------------------------------------------------------------------------------------- grids


def oblique() -> NDArray[np.float64]:
    """Axes that run between the patient's, at right angles."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, 0.0, -0.6], [0.6, 0.0, 0.8], [0.0, -1.0, 0.0]]) @ np.diag([2.0, 0.5, 1.5])
    affine[:3, 3] = (-30, 12, 7)
    return affine


@pytest.mark.parametrize("wanted", ORIENTATIONS)
def test_turning_keeps_every_voxel_in_its_place(wanted: str) -> None:
    nib = pytest.importorskip("nibabel")
    for affine in (np.diag([2.0, -3.0, 0.5, 1.0]), oblique()):
        grid = Grid((4, 5, 6), affine)
        assert grid.orientation == "".join(nib.aff2axcodes(np.diag([-1, -1, 1, 1]) @ affine))
        turn = Turn.to(grid, wanted)
        turned = turn.grid(grid)
        assert turned.orientation == wanted
        values = np.random.default_rng(0).random(grid.shape)
        there = turn.apply(values)
        assert there.shape == turned.shape
        assert (turn.undo(there) == values).all()
        for index in itertools.product(range(4), (0, 2), (0, 5)):
            place = np.rint(np.linalg.solve(turned.affine, affine @ (*index, 1))[:3]).astype(int)
            assert there[tuple(place)] == values[index]


def test_resizing_is_linear_and_keeps_the_space() -> None:
    """A ramp in space stays that ramp, away from the edges; edges of the grids meet."""
    grid = Grid((12, 10, 9), oblique())
    z, y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in grid.shape), indexing="ij")
    points = np.stack([z, y, x, np.ones_like(z)], -1) @ grid.affine.T
    direction = np.array([0.3, -0.2, 0.5])
    shape = (31, 7, 20)
    other = grid.resized(shape)
    got = resize((points[..., :3] @ direction).astype(np.float32), shape)
    z, y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij")
    expected = (np.stack([z, y, x, np.ones_like(z)], -1) @ other.affine.T)[..., :3] @ direction
    inside = tuple(slice(side // 6 + 1, -side // 6 - 1) for side in shape)
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-4)
    for one in (grid, other):
        edge = one.affine @ (-0.5, -0.5, -0.5, 1)
        np.testing.assert_allclose(edge, grid.affine @ (-0.5, -0.5, -0.5, 1), atol=1e-9)
    assert abs(other.voxel_ml * np.prod(shape) - grid.voxel_ml * np.prod(grid.shape)) < 1e-9


@pytest.mark.parametrize("shape", [(7, 9, 8), (20, 18, 16), (3, 4, 5), (7, 18, 4), (14, 9, 8), (1, 9, 8)])
def test_masks_are_of_the_largest_interpolated_logit(shape: tuple[int, int, int]) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 7, 9, 8), np.float32)
    slabs = [Slab(0, logits[:, :3]), Slab(3, logits[:, 3:4]), Slab(4, logits[:, 4:])]
    expected = np.stack([resize(plane, shape) for plane in logits])
    got = mask_of(iter(slabs), 7, shape)
    assert got.dtype == np.uint8
    best = np.take_along_axis(expected, got[None].astype(int), 0)[0]
    assert (expected.max(axis=0) - best).max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((1, 8, 8), np.eye(4), "one slice"),
        ((4096, 4096, 4096), np.eye(4), "limit"),
        ((8, 8, 8), np.diag([1.0, 0.0, 1.0, 1.0]), "no sense"),
        ((8, 8, 8), np.diag([1.0, np.nan, 1.0, 1.0]), "no sense"),
        ((8, 8, 8), np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float), "tilted"),
    ],
)
def test_grids_that_are_no_volume(shape: tuple[int, int, int], affine: NDArray[np.float64], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        Grid(shape, affine).check("it")


# -------------------------------------------------------------------------------------------------------------- normalisation


def test_z_scores_equal_monai() -> None:
    array = pytest.importorskip("monai.transforms.intensity.array")
    values = np.random.default_rng(0).normal(300, 40, (5, 6, 7)).astype(np.float32)
    values[:, :3] = 0
    for kind, nonzero in (("zscore_nonzero", True), ("zscore", False)):
        ours = values.copy()
        normalise(ours, Normalisation(kind=kind))  # type: ignore[arg-type]
        theirs = np.asarray(array.NormalizeIntensity(nonzero=nonzero)(values.copy()))
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    empty = np.zeros((2, 2, 2), np.float32)
    normalise(empty, Normalisation())
    assert (empty == 0).all()


def test_windows_of_intensity() -> None:
    values = np.array([-2000, -100, 50, 200, 3000], np.float32)
    unit = values.copy()
    normalise(unit, Normalisation(kind="window", low=-100, high=200))
    np.testing.assert_allclose(unit, [0, 0, 0.5, 1, 1], atol=1e-6)
    normalise(values, Normalisation(kind="window", low=-100, high=200, mean=50, std=75))
    np.testing.assert_allclose(values, [-2, -2, 0, 2, 2], atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------- card


@pytest.mark.parametrize(
    "wrong",
    [
        {"modalities": ()},
        {"modalities": ("a", "a")},
        {"modalities": ("a=b",)},
        {"patch": (0, 8, 8)},
        {"patch": (1024, 1024, 1024)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, float("nan"), 1)},
        {"orientation": "RAR"},
        {"orientation": "RA"},
        {"overlap": 1.0},
        {"blending": "linear"},
        {"normalisation": [{"kind": "window", "low": 5, "high": 1}]},
        {"normalisation": [{"kind": "zscore", "low": 5}]},
        {"normalisation": [{}, {}]},
        {"codes": {"a": {"type": {"value": "1" * 17, "meaning": "x"}}}},
        {"extra": 1},
    ],
    ids=str,
)
def test_cards_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VolumeCard.model_validate({"modalities": ("t1",), "patch": (8, 8, 8)} | wrong)


def test_codes_hold_what_dicom_takes() -> None:
    assert Code(value="10200004", meaning="Liver").scheme == "SCT"
    with pytest.raises(ValidationError):
        Code(value="1\\2", meaning="Liver")
