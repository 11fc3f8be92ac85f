"""Batches of segmentation, and the order in which they come."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch.utils.data import Dataset

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data import Part
from edgemamba.train.data.loading import BatchLoader, Item, ResumableLoader
from edgemamba.train.data.ranks import RankedLoaders
from edgemamba.train.segmentation.augmenting import Augmenter
from edgemamba.train.segmentation.cases import Case, Cases


class TrainingPatches(Dataset[Item]):
    """Examples of cases, asked for by (epoch, index); several a case where patches are drawn. What is drawn depends on the
    key alone."""

    def __init__(self, cases: Cases, augmenter: Augmenter, seed: int, each: int) -> None:
        self.cases = cases
        self.augmenter = augmenter
        self.seed = seed
        self.each = each

    def __len__(self) -> int:
        return len(self.cases) * self.each

    def __getitem__(self, key: tuple[int, ...]) -> Item:
        seed = int(np.random.SeedSequence((self.seed, *key)).generate_state(1)[0])
        pixels, labels = self.augmenter(_read(self.cases, key[1] // self.each), seed)
        return Item(pixels, labels, {})


class WholeCases(Dataset[Item]):
    """Cases as they are evaluated while a model trains: at the model's resolution."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Item:
        case = _read(self.cases, index)
        return Item(case.pixels, case.labels, {})


def _read(cases: Cases, index: int) -> Case:
    try:
        return cases.read(index)
    except SourceError as error:
        # It could be read when the run began: there is no picture to stand in for it, and no mask.
        raise DataError(str(error)) from None


class CasesModule(RankedLoaders):
    """Loaders over the cases of a data set.

    Args:
        parts: ``train`` and ``val`` at least.
        augmenter: for training.
        batch_size, workers, seed: see :class:`RankedLoaders`.
        each: examples of a case in an epoch.
        whole: validate cases of one size, in batches; else one by one.
    """

    def __init__(
        self,
        parts: Mapping[Part, Cases],
        augmenter: Augmenter,
        *,
        batch_size: int,
        each: int,
        workers: int,
        seed: int,
        whole: bool,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.parts = parts
        self.augmenter = augmenter
        self.each = each
        self.whole = whole

    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(TrainingPatches(self.parts["train"], self.augmenter, self.seed, self.each))

    def val_dataloader(self) -> BatchLoader:
        cases = self.parts["val"]
        return self.ordered_loader(WholeCases(cases), self.share(len(cases)), None if self.whole else 1)

    def note_unreadable(self, found: dict[str, str]) -> dict[str, str]:
        """Nothing is passed over here: a case that cannot be read stops the run."""
        return {}
