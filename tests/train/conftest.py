"""Fixtures that several tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from training_toys import record_losses

from edgemamba.train.classifier import Classifier


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The loss of every training batch by its number in the run."""
    seen: dict[int, float] = {}
    monkeypatch.setattr(Classifier, "training_step", record_losses(seen.__setitem__))
    return seen
