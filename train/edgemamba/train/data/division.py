"""Which pictures are trained on and which validate, where a data set does not say so itself or is to be divided anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.dataset import Part
from edgemamba.train.data.pictures import PictureSet
from edgemamba.train.data.split import folds, spread
from edgemamba.train.data.views import JoinedPictures, PickedPictures

#: Share of each class that is held out for validation where a data set brings no parts of its own.
DEFAULT_VAL_FRACTION = 0.2


@dataclass(frozen=True)
class Division:
    """How to make a training and a validation part.

    Attributes:
        val_fraction: share of each class of the training part to hold out where there is no validation part; None for
            :data:`DEFAULT_VAL_FRACTION` where the data set names no parts at all.
        fold: (k, K): fold k of K validates (k counts from 1) and the others are trained on. Training and validation
            part are joined first, whoever made them; a test part is left alone.
        seed: of the draw.

    Raises:
        DataError: a value is out of range, or both are given.
    """

    val_fraction: float | None = None
    fold: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise DataError(f"--val-fraction is {self.val_fraction}; it must lie between 0 and 1")
        if self.fold is None:
            return
        number, count = self.fold
        if count < 2 or not 1 <= number <= count:
            raise DataError(
                f"--fold is {number}/{count}; k/K with K of at least 2 and k from 1 to K is needed, as in 1/5"
            )
        if self.val_fraction is not None:
            raise DataError("--fold and --val-fraction each say what validates; give one of them")

    def apply(self, parts: Mapping[Part, PictureSet], *, origin: str, has_parts: bool) -> dict[Part, PictureSet]:
        """The parts of a data set as they are trained on.

        Pictures of one group stay together, and each class is divided alike; see :mod:`edgemamba.train.data.split`.

        Args:
            parts: what the data set brings; ``train`` at least.
            origin: the data set, for messages.
            has_parts: the data set names parts (a ``train`` folder, a ``split`` column). It is then taken at its word:
                nothing is held out unless :attr:`val_fraction` or :attr:`fold` is given.

        Raises:
            DataError: there is no validation part and none was asked for, no picture could be held out, or there are
                fewer groups than folds.
        """
        if self.fold is not None:
            sources = [parts[part] for part in ("train", "val") if part in parts]
            pictures = sources[0] if len(sources) == 1 else JoinedPictures(sources)
            out = self._fold(pictures, origin)
        elif "val" in parts:
            return dict(parts)
        else:
            pictures = parts["train"]
            out = self._held_out(pictures, origin, has_parts)
        return {
            **parts,
            "train": PickedPictures(pictures, np.flatnonzero(~out)),
            "val": PickedPictures(pictures, np.flatnonzero(out)),
        }

    def _fold(self, pictures: PictureSet, origin: str) -> NDArray[np.bool_]:
        assert self.fold is not None
        number, count = self.fold
        groups = pictures.groups
        units = len(pictures) if groups is None else len(set(groups) - {None}) + groups.count(None)
        if count > units:
            what = "pictures" if groups is None else "patients (or groups)"
            raise DataError(
                f"{origin} has {units} {what} to train and validate on; it cannot be divided into {count} folds"
            )
        return folds(pictures.labels.tolist(), groups, count, self.seed) == number - 1

    def _held_out(self, pictures: PictureSet, origin: str, has_parts: bool) -> NDArray[np.bool_]:
        fraction = self.val_fraction
        if fraction is None:
            if has_parts:
                raise DataError(
                    f"{origin} has a training part and no validation part; add one (val), or hold a share of the training "
                    "part out with --val-fraction 0.2"
                )
            fraction = DEFAULT_VAL_FRACTION
        out = np.array(spread(pictures.labels.tolist(), pictures.groups, fraction, self.seed), bool)
        if not out.any():
            raise DataError(f"{origin} has too few pictures to hold {fraction:.0%} out for validation")
        return out
