"""Pictures and volumes with their masks, as a model reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.runtime.volumes.grids import Turn
from edgemamba.runtime.volumes.preparing import prepare
from edgemamba.runtime.volumes.reading import Study, read_volumes
from edgemamba.train.data.pictures import read_file
from edgemamba.train.data.transforms import evaluation_transform
from edgemamba.train.segmentation.masks import (
    IGNORED,
    Mask,
    check_labels,
    read_mask_picture,
    read_mask_volume,
    resize_mask,
)
from edgemamba.train.segmentation.pairs import Pair, sources_of


@dataclass(frozen=True)
class Case:
    """One picture or volume.

    Attributes:
        pixels: float32 (C, *size), normalised.
        labels: uint8 of that size.
        truth: uint8, the mask as it is in its file, of volumes turned to the model's axes: what predictions are compared with.
        spacing: of the truth's pixels or voxels; of volumes in mm, of pictures 1.
    """

    pixels: Tensor
    labels: Mask
    truth: Mask
    spacing: tuple[float, ...]


class Cases(ABC):
    """The cases of one part.

    Args:
        pairs: where they are.
        classes: how many are told apart.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int) -> None:
        self.pairs = tuple(pairs)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    @abstractmethod
    def read(self, index: int) -> Case:
        """Read and prepare one.

        Raises:
            SourceError, DataError: it cannot be read, or picture and mask do not fit; the message names the file.
        """


class PictureCases(Cases):
    """Pictures and DICOM files, through the runtime's one decode path.

    Args:
        preprocessing: of the model.
        resize: give them the model's size; else they keep their own.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, preprocessing: Preprocessing, *, resize: bool) -> None:
        super().__init__(pairs, classes)
        self.preprocessing = preprocessing
        self.resize = resize

    def read(self, index: int) -> Case:
        pair = self.pairs[index]
        picture, truth = read_file(pair.image), read_mask_picture(pair.mask)
        size = picture.shape[:2]
        if truth.shape != size:
            raise DataError(
                f"{pair.mask} is {truth.shape[0]}x{truth.shape[1]} and {pair.image} is {size[0]}x{size[1]} (height x width); "
                "a mask has the size of its picture"
            )
        check_labels(truth, self.classes, pair.mask)
        recipe = self.preprocessing
        if not self.resize:
            recipe = recipe.model_copy(update={"size": size, "resize": "squash"})
            _check_patch(pair, size, self.preprocessing.size)
        pixels = evaluation_transform(recipe)(picture)
        return Case(pixels, resize_mask(truth, recipe.size), truth, (1.0, 1.0))


class VolumeCases(Cases):
    """CT and MR series and NIfTI files, prepared as a device prepares them, and kept in memory once they were read.

    Args:
        card: of the model.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, card: VolumeCard) -> None:
        super().__init__(pairs, classes)
        self.card = card
        self._kept: dict[int, Case] = {}

    def read(self, index: int) -> Case:
        if index not in self._kept:
            self._kept[index] = self._read(self.pairs[index])
        return self._kept[index]

    def _read(self, pair: Pair) -> Case:
        sources, _ = sources_of(pair)
        study = read_volumes(sources, self.card.modalities)
        mask, grid = read_mask_volume(pair.mask)
        onto = Turn.onto(grid, study.grid)
        if onto is None:
            raise DataError(_elsewhere(pair, study, mask))
        mask = onto.apply(mask)
        check_labels(mask, self.classes, pair.mask)
        prepared = prepare(study, self.card)
        truth = np.ascontiguousarray(prepared.turn.apply(mask))
        size = prepared.values.shape[1:]
        _check_patch(pair, size, self.card.patch)
        spacing = prepared.turn.grid(study.grid).steps
        return Case(torch.from_numpy(prepared.values), resize_mask(truth, size), truth, spacing)


def _elsewhere(pair: Pair, study: Study, mask: Mask) -> str:
    if sorted(mask.shape) != sorted(study.grid.shape):
        how = f"has {' x '.join(map(str, mask.shape))} voxels instead of {' x '.join(map(str, study.grid.shape))}"
    else:
        how = "has another affine"
    return f"{pair.mask} {how}: its voxels do not lie where those of {pair.image} do; resample it to that grid"


def _check_patch(pair: Pair, size: Sequence[int], patch: Sequence[int]) -> None:
    if any(side < wanted for side, wanted in zip(size, patch, strict=True)):
        raise DataError(
            f"{pair.image} is {'x'.join(map(str, size))}, smaller than the patches of {'x'.join(map(str, patch))}; choose smaller "
            "ones with --size"
        )


def count_classes(pairs: Sequence[Pair], *, volumes: bool) -> int:
    """One more than the largest label in the masks, for data sets that name no classes.

    Raises:
        DataError: a mask cannot be read, or there is nothing but background.
    """
    largest = 0
    for pair in pairs:
        mask = read_mask_volume(pair.mask)[0] if volumes else read_mask_picture(pair.mask)
        largest = max(largest, int(mask[mask != IGNORED].max(initial=0)))
    if largest == 0:
        raise DataError(
            f"the masks beside {pairs[0].mask} hold nothing but background (0); two or more classes are needed"
        )
    return largest + 1


def card_of(card: VolumeCard, **changes: object) -> VolumeCard:
    """A card with other fields, checked."""
    return VolumeCard.model_validate({**card.model_dump(), **changes})
