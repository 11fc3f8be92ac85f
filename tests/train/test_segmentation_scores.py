"""Dice, Hausdorff distances, the loss and sliding windows, against what can be worked out otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgemamba.runtime.volumes.windows import slide as slide_on_device
from edgemamba.train.segmentation.module import DiceCrossEntropy
from edgemamba.train.segmentation.predicting import slide
from edgemamba.train.segmentation.scoring import score_case, summarise

pytest.importorskip("monai")


def box(size: tuple[int, ...], *corners: tuple[int, int], label: int = 1) -> Tensor:
    mask = torch.zeros(size, dtype=torch.int64)
    mask[tuple(slice(a, b) for a, b in corners)] = label
    return mask


def test_dice_and_hd95_of_two_boxes_in_millimetres() -> None:
    truth, prediction = box((20, 20, 20), (4, 8), (4, 12), (4, 12)), box((20, 20, 20), (6, 10), (4, 12), (4, 12))
    scores = score_case("a", prediction, truth, 2, (5.0, 1.0, 1.0))
    assert scores.dice == pytest.approx((0.5,))
    # Each end is two slices of 5 mm from the other's, and more than 5 % of the surface is an end.
    assert scores.hd95 == pytest.approx((10.0,))
    assert score_case("a", prediction, truth, 2, (1.0, 1.0, 1.0)).hd95 == pytest.approx((2.0,))
    assert (scores.true, scores.predicted) == ((256,), (256,))


def test_classes_that_are_not_there_are_counted_and_in_no_mean() -> None:
    none, some = torch.zeros(16, 16, dtype=torch.int64), box((16, 16), (2, 8), (2, 8))
    pairs = {"right": (some, some), "missed": (none, some), "invented": (some, none), "absent": (none, none)}
    cases = [score_case(name, *masks, 3, (1.0, 1.0)) for name, masks in pairs.items()]
    figures = summarise(cases, ("background", "one", "two"), "px")
    one, two = figures.classes["one"], figures.classes["two"]
    assert (one.judged, one.measured, one.missed, one.invented, one.absent) == (3, 1, 1, 1, 1)
    assert one.dice == pytest.approx(1 / 3)
    assert one.hd95 == 0
    assert (two.judged, two.absent) == (0, 4)
    assert math.isnan(two.dice)
    assert figures.dice == pytest.approx(1 / 3)
    written = figures.to_json()
    assert written["classes"]["two"]["dice"] is None
    assert written["cases"][3]["dice"] == [None, None]


def test_ignored_pixels_count_in_no_score_and_in_no_loss() -> None:
    truth = box((16, 16), (2, 8), (2, 8))
    truth[8:] = 255
    prediction = box((16, 16), (2, 8), (2, 8))
    prediction[10:] = 1
    assert score_case("a", prediction, truth, 2, (1.0, 1.0)).dice == (1.0,)
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = logits.clone()
    changed[:, :, 8:] += 3 * torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    loss, labels = DiceCrossEntropy(1.0, 1.0), truth[None].repeat(2, 1, 1)
    torch.testing.assert_close(loss(changed, labels), loss(logits, labels))
    assert torch.isfinite(loss(logits, torch.full_like(labels, 255)))


def test_the_loss_is_dice_plus_cross_entropy() -> None:
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    p, y = logits.softmax(1)[:, 1:], torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)[:, 1:]
    overlap, total = (p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
    dice = (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()
    cross = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(DiceCrossEntropy(2.0, 0.5)(logits, labels), 2 * dice + 0.5 * cross)


@pytest.mark.parametrize(("size", "patch"), [((40, 33, 20), (16, 16, 16)), ((10, 30, 30), (16, 16, 16))])
def test_windows_are_those_of_the_device(size: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0.5, 1.5, math.prod(patch)).reshape(
        patch
    )  # what a window says depends on where in it a voxel is

    def model(windows: Tensor) -> Tensor:
        return torch.cat([windows * ramp, windows.square()], 1)

    ours = slide(model, x, patch, 0.5)[0].numpy()
    slabs = slide_on_device(x[0].numpy(), patch, lambda w: model(torch.from_numpy(w)).numpy(), overlap=0.5)
    theirs = np.concatenate([slab.logits for slab in slabs], axis=1)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_windows_of_a_picture_that_say_the_same_are_blended_to_it() -> None:
    x = torch.randn(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide(lambda windows: 2 * windows, x, (32, 32), 0.25), 2 * x)
