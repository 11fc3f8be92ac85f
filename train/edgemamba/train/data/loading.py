"""Batches: which pictures, in which order, and what happens to those that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from edgemamba.runtime.errors import DataError, EdgeMambaError, SourceError
from edgemamba.train.data.balancing import balanced_order
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.transforms import Transform, seeded

# A picture that cannot be read is stood in for by the next one that can; where this many in a row fail, it is not the
# pictures that are at fault.
_MAX_STAND_INS = 16


class Batch(NamedTuple):
    """float32 pictures (B, 3, H, W), int64 labels (B,), and the names of pictures that could not be read, with the reason."""

    pixels: Tensor
    labels: Tensor
    unreadable: dict[str, str]


class Item(NamedTuple):
    """One picture of a batch; ``pixels`` is None for one that could not be read and has no stand-in. A mask is a label too:
    integers with the picture's axes of space."""

    pixels: Tensor | None
    label: int | NDArray[np.integer[Any]]
    unreadable: dict[str, str]


class TrainingItems(Dataset[Item]):
    """Augmented training pictures, asked for by (epoch, index), or (epoch, index, n) where a picture is drawn for the n-th time
    in an epoch. What augmentation draws depends on the whole key.

    An unreadable picture is replaced by the next readable one, so that batches keep their size (on all ranks alike).
    """

    def __init__(self, pictures: PictureSet, transform: Transform, seed: int) -> None:
        self.pictures = pictures
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, ...]) -> Item:
        index = key[1]
        unreadable = {}
        for step in range(_MAX_STAND_INS):
            position = (index + step) % len(self.pictures)
            try:
                pixels = self.pictures.read(position)
            except SourceError as error:
                unreadable[self.pictures.name(position)] = str(error)
                continue
            with seeded(self.seed, *key):
                return Item(self.transform(pixels), int(self.pictures.labels[position]), unreadable)
        raise DataError(
            f"{len(unreadable)} pictures in a row cannot be read; the last: {list(unreadable.values())[-1]}"
        )


class EvaluationItems(Dataset[Item]):
    """Pictures as the device sees them, by index. An unreadable one is left out of its batch."""

    def __init__(self, pictures: PictureSet, transform: Transform) -> None:
        self.pictures = pictures
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Item:
        label = int(self.pictures.labels[index])
        try:
            return Item(self.transform(self.pictures.read(index)), label, {})
        except SourceError as error:
            return Item(None, label, {self.pictures.name(index): str(error)})


def collate(items: Sequence[Item]) -> Batch:
    """Stack the pictures of a batch; those that could not be read are only named."""
    read = [(item.pixels, item.label) for item in items if item.pixels is not None]
    return Batch(
        torch.stack([pixels for pixels, _ in read]) if read else torch.zeros(0, 3, 1, 1),
        torch.tensor(np.array([label for _, label in read]), dtype=torch.int64),
        {name: reason for item in items for name, reason in item.unreadable.items()},
    )


class EpochSampler(DistributedSampler[Any]):
    """A seeded order of its own for every epoch, divided over the ranks; it can start in the middle.

    Yields the keys of :class:`TrainingItems`, because what is drawn for a picture depends on the epoch too. One rank in a
    world of one sees the union of what several see, batch by batch.

    Args:
        dataset: what to draw from.
        world_size, rank: among how many the order is divided, and which of them this is.
        seed: of the order.
        balanced: draw each class equally often, in epochs of the same length. Of a class with too many pictures, each epoch
            takes others; those of a class with too few come several times, equally often to within one.
    """

    def __init__(
        self, dataset: Dataset[Item], *, world_size: int, rank: int, seed: int, balanced: bool = False
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)
        self.skip = 0
        self._labels = None
        if balanced:
            assert isinstance(dataset, TrainingItems)
            self._labels = dataset.pictures.labels

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        # Not a generator: the epoch counts at the time of the call.
        keys: list[tuple[int, ...]]
        if self._labels is None:
            keys = [(self.epoch, index) for index in super().__iter__()]
        else:
            keys = self._balanced(self._labels)
        keys, self.skip = keys[self.skip :], 0
        return iter(keys)

    def _balanced(self, labels: NDArray[np.int64]) -> list[tuple[int, ...]]:
        order = balanced_order(labels, self.seed, self.epoch)
        times = Counter[int]()
        keys: list[tuple[int, ...]] = []
        for index in order.tolist():
            keys.append((self.epoch, index, times[index]) if times[index] else (self.epoch, index))
            times[index] += 1
        # As DistributedSampler does: what lacks for equal shares is repeated from the beginning.
        keys = [keys[place % len(keys)] for place in range(self.total_size)]
        return keys[self.rank : self.total_size : self.num_replicas]


class BatchLoader(DataLoader[Batch]):
    """A loader whose worker processes report what a user got wrong as the main process would: in one line."""

    def __init__(self, dataset: Dataset[Item], **options: Any) -> None:
        # Typed as if a loader gave items; it gives what collate makes of them.
        super().__init__(dataset, collate_fn=collate, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return _with_plain_errors(super().__iter__())


def _with_plain_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    """torch raises an error of a worker's again, with the worker's traceback as its message."""
    try:
        yield from batches
    except EdgeMambaError as error:
        message = str(error.args[0]).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2]
        raise type(error)(message.strip()) from None


class ResumableLoader(BatchLoader):
    """A training loader that knows how far into the epoch it is, so that a run goes on with the very next batch.

    Lightning saves :meth:`state_dict` in checkpoints and hands it back before the first epoch of a resumed run.
    """

    def __init__(self, dataset: Dataset[Item], sampler: EpochSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, **options)
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        skipped = self._skipped
        batches = super().__iter__()
        self._given = skipped

        def count() -> Iterator[Batch]:
            for batch in batches:
                self._given += 1
                yield batch

        return count()

    @property
    def _order(self) -> EpochSampler:
        assert isinstance(self.sampler, EpochSampler)
        return self.sampler

    @property
    def _skipped(self) -> int:
        return self._order.skip // int(self.batch_size or 1)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given; an epoch that is over counts as the next one's beginning."""
        if self._given >= len(self):
            return {"epoch": self._order.epoch + 1, "batches": 0}
        return {"epoch": self._order.epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._order.set_epoch(state["epoch"])
        self._order.skip = state["batches"] * int(self.batch_size or 1)
