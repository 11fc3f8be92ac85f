"""Batches of segmentation, and the order in which they come."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data import Part
from edgemamba.train.data.loading import Batch, EpochSampler, Item, ResumableLoader, collate
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


class CasesModule(pl.LightningDataModule):
    """Loaders over the cases of a data set.

    Args:
        parts: ``train`` and ``val`` at least.
        augmenter: for training.
        batch_size: of each rank.
        each: examples of a case in an epoch.
        workers: processes for each loader.
        seed: of the order and of what is drawn.
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
        super().__init__()
        self.parts = parts
        self.augmenter = augmenter
        self.batch_size = batch_size
        self.each = each
        self.workers = workers
        self.seed = seed
        self.whole = whole

    def train_dataloader(self) -> ResumableLoader:
        items = TrainingPatches(self.parts["train"], self.augmenter, self.seed, self.each)
        world_size, rank = self._place()
        sampler = EpochSampler(items, world_size=world_size, rank=rank, seed=self.seed)  # type: ignore[arg-type]
        return ResumableLoader(
            items,  # type: ignore[arg-type]
            sampler,
            batch_size=self.batch_size,
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        world_size, rank = self._place()
        cases = self.parts["val"]
        return DataLoader(
            WholeCases(cases),  # type: ignore[arg-type]
            sampler=range(rank, len(cases), world_size),
            batch_size=self.batch_size if self.whole else 1,
            collate_fn=collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def note_unreadable(self, found: dict[str, str]) -> dict[str, str]:
        """Nothing is passed over here: a case that cannot be read stops the run."""
        return {}

    def _place(self) -> tuple[int, int]:
        """World size and rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
