"""Balanced epochs: each class equally often, divided over ranks, resumed with the very next draw."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toys import tiny

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.data import ArrayPictures
from edgemamba.train.data.balancing import balanced_order
from edgemamba.train.data.loading import EpochSampler, ResumableLoader, TrainingItems


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), seed=st.integers(0, 3), epoch=st.integers(0, 5))
def test_order(labels: list[int], seed: int, epoch: int) -> None:
    order = balanced_order(np.array(labels), seed, epoch)
    assert order.tolist() == balanced_order(np.array(labels), seed, epoch).tolist()
    assert len(order) == len(labels)
    drawn = Counter(labels[index] for index in order)
    assert set(drawn) == set(labels)
    assert max(drawn.values()) - min(drawn.values()) <= 1
    for label in set(labels):
        times = Counter(index for index in order.tolist() if labels[index] == label)
        counts = [times[index] for index, own in enumerate(labels) if own == label]
        assert max(counts) - min(counts) <= 1


def test_every_picture_of_a_large_class_comes_up_in_some_epoch() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    epochs = [balanced_order(labels, 0, epoch) for epoch in range(12)]
    assert len({tuple(order) for order in epochs}) == 12
    assert set(np.concatenate(epochs)) == set(range(100))


def test_the_extra_draw_goes_round_the_classes() -> None:
    """Ten draws for three classes: each class gets the tenth in one epoch of three."""
    labels = np.array([0] * 5 + [1] * 4 + [2])
    counts = [np.bincount(labels[balanced_order(labels, 0, epoch)]).tolist() for epoch in range(3)]
    assert sorted(counts) == [[3, 3, 4], [3, 4, 3], [4, 3, 3]]


@pytest.fixture
def items() -> TrainingItems:
    """Twenty-two pictures of one class and three of another."""
    images = np.arange(25, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    pictures = ArrayPictures(images, np.array([0] * 22 + [1] * 3), "toy")
    return TrainingItems(pictures, lambda pixels: torch.rand(3, 1, 1) + int(pixels[0, 0, 0]), seed=1)


def sampler(items: TrainingItems, world_size: int = 1, rank: int = 0, epoch: int = 4) -> EpochSampler:
    made = EpochSampler(items, world_size=world_size, rank=rank, seed=3, balanced=True)
    made.set_epoch(epoch)
    return made


def test_ranks_divide_the_epoch(items: TrainingItems) -> None:
    one = list(sampler(items))
    two = [list(sampler(items, 2, rank)) for rank in (0, 1)]
    assert len(one) == len(sampler(items)) == 25
    # Twenty-five are not even: the first comes again.
    assert [*one, one[0]] == [key for pair in zip(*two, strict=True) for key in pair]
    assert len(two[0]) == len(sampler(items, 2, 0)) == 13


def test_repeated_pictures_are_augmented_anew(items: TrainingItems) -> None:
    keys = list(sampler(items))
    assert len(set(keys)) == 25
    rare = [key for key in keys if key[1] >= 22]
    assert len(rare) in (12, 13)
    pixels = [items[key].pixels for key in rare]
    assert len({float(picture.sum()) for picture in pixels if picture is not None}) == len(rare)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_with_the_next_batch(items: TrainingItems, workers: int) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(items, sampler(items), batch_size=4, num_workers=workers)

    first = loader()
    batches = iter(first)
    given_first = [next(batches).labels for _ in range(3)]
    state = first.state_dict()
    rest = list(batches)
    second = loader()
    second.load_state_dict(state)
    for mine, theirs in zip(second, rest, strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
        assert torch.equal(mine.labels, theirs.labels)
    labels = torch.cat([*given_first, *(batch.labels for batch in rest)])
    assert sorted(torch.bincount(labels).tolist()) == [12, 13]


def test_a_resumed_run_keeps_its_order() -> None:
    """Drawing otherwise would be another run; a cache, or strictness, changes no draw."""
    saved = tiny(Path("x.npz"), Path("run")).model_dump(mode="json")
    tiny(Path("x.npz"), Path("run"), cache="ram", cache_gb=1.0, strict_data=True).check_same(saved)
    with pytest.raises(TrainingError, match="--balanced False"):
        tiny(Path("x.npz"), Path("run"), balanced=True).check_same(saved)
