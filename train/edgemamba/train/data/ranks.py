"""Loaders of a run on one rank or several: each rank its own share, in an order that the seed decides."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import Dataset

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.loading import BatchLoader, EpochSampler, Item, ResumableLoader


class RankedLoaders(pl.LightningDataModule):
    """What the data sides of all tasks share.

    Args:
        batch_size: of each rank.
        workers: processes that decode, for each loader; 0 decodes in the training process.
        seed: of the order and the augmentation.
    """

    def __init__(self, *, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed

    def training_loader(self, items: Dataset[Item], *, balanced: bool = False) -> ResumableLoader:
        """Batches of an epoch's order; see :class:`~edgemamba.train.data.loading.EpochSampler`."""
        world_size, rank = self.place()
        sampler = EpochSampler(items, world_size=world_size, rank=rank, seed=self.seed, balanced=balanced)
        # Batch norms need more than one picture; but a set smaller than a batch must still give one.
        whole = len(sampler) >= self.batch_size
        return ResumableLoader(items, sampler, batch_size=self.batch_size, drop_last=whole, **self._processes())

    def ordered_loader(self, items: Dataset[Item], indices: range, batch_size: int | None = None) -> BatchLoader:
        """Batches of these items, in order."""
        return BatchLoader(items, sampler=indices, batch_size=batch_size or self.batch_size, **self._processes())

    def share(self, count: int) -> range:
        """Indices of this rank: each belongs to one rank alone, where a DistributedSampler would repeat some to even them out.

        Raises:
            DataError: some rank would have none.
        """
        world_size, rank = self.place()
        if count < world_size:
            raise DataError(
                f"{count} to validate on cannot be shared by {world_size} devices; hold out more, or take fewer --devices"
            )
        return range(rank, count, world_size)

    def place(self) -> tuple[int, int]:
        """World size and rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _processes(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
