"""The data side of a training run: loaders for Lightning, and the count of pictures that cannot be read."""

from __future__ import annotations

from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.data.dataset import ImageDataset
from edgemamba.train.data.loading import (
    BatchLoader,
    EvaluationItems,
    ResumableLoader,
    TrainingItems,
)
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.ranks import RankedLoaders
from edgemamba.train.data.transforms import Augmentation, evaluation_transform, training_transform
from edgemamba.train.data.unreadable import check_unreadable


class PicturesModule(RankedLoaders):
    """Loaders over an :class:`ImageDataset`.

    Args:
        dataset: what to load.
        preprocessing: the model's; sizes and normalisation of both transforms come from it.
        augmentation: for training.
        batch_size, workers, seed: see :class:`RankedLoaders`.
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
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.balanced = balanced
        self.unreadable: dict[str, str] = {}
        self._training_transform = training_transform(preprocessing, augmentation)
        self._evaluation_transform = evaluation_transform(preprocessing)

    def train_dataloader(self) -> ResumableLoader:
        items = TrainingItems(self.dataset.train, self._training_transform, self.seed)
        return self.training_loader(items, balanced=self.balanced)

    def val_dataloader(self) -> BatchLoader:
        return self.evaluation_loader(self.dataset.val, self.share(len(self.dataset.val)))

    def evaluation_loader(self, pictures: PictureSet, indices: range | None = None) -> BatchLoader:
        """Batches of a part (or of some of it) as the device sees it, in order."""
        items = EvaluationItems(pictures, self._evaluation_transform)
        return self.ordered_loader(items, range(len(pictures)) if indices is None else indices)

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
