"""The data side of a training run: loaders for Lightning, and the count of pictures that cannot be read."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.data.dataset import ImageDataset
from edgemamba.train.data.loading import (
    BatchLoader,
    EpochSampler,
    EvaluationItems,
    ResumableLoader,
    TrainingItems,
)
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.transforms import Augmentation, evaluation_transform, training_transform
from edgemamba.train.data.unreadable import check_unreadable


class PicturesModule(pl.LightningDataModule):
    """Loaders over an :class:`ImageDataset`.

    Args:
        dataset: what to load.
        preprocessing: the model's; sizes and normalisation of both transforms come from it.
        augmentation: for training.
        batch_size: of each rank.
        workers: processes that decode, for each loader; 0 decodes in the training process.
        seed: of the order and the augmentation.
        balanced: draw each class equally often in training; see :class:`~edgemamba.train.data.loading.EpochSampler`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.balanced = balanced
        self.unreadable: dict[str, str] = {}
        self._training_transform = training_transform(preprocessing, augmentation)
        self._evaluation_transform = evaluation_transform(preprocessing)

    def train_dataloader(self) -> ResumableLoader:
        items = TrainingItems(self.dataset.train, self._training_transform, self.seed)
        world_size, rank = self._place()
        sampler = EpochSampler(items, world_size=world_size, rank=rank, seed=self.seed, balanced=self.balanced)
        return ResumableLoader(
            items,
            sampler,
            batch_size=self.batch_size,
            # Batch norms need more than one picture; but a set smaller than a batch must still give one.
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> BatchLoader:
        # Every rank its own pictures, and each picture once: a DistributedSampler would repeat some to even the ranks out.
        world_size, rank = self._place()
        return self.evaluation_loader(self.dataset.val, range(rank, len(self.dataset.val), world_size))

    def evaluation_loader(self, pictures: PictureSet, indices: range | None = None) -> BatchLoader:
        """Batches of a part (or of some of it) as the device sees it, in order."""
        return BatchLoader(
            EvaluationItems(pictures, self._evaluation_transform),
            sampler=range(len(pictures)) if indices is None else indices,
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _place(self) -> tuple[int, int]:
        """World size and rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def note_unreadable(self, found: dict[str, str]) -> dict[str, str]:
        """Count pictures that could not be read.

        Returns:
            Those not seen before, with the reason.

        Raises:
            DataError: they are more than 1 % of the data set by now.
        """
        new = {name: reason for name, reason in found.items() if name not in self.unreadable}
        self.unreadable.update(new)
        if new:
            check_unreadable(self.unreadable, sum(len(part) for part in self.dataset.parts.values()))
        return new
