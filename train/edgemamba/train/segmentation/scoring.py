"""What a segmenter is judged by: Dice and the 95th percentile of the Hausdorff distance, by class, and how many cases say so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from edgemamba.runtime.extras import require
from edgemamba.train.segmentation.masks import IGNORED


@dataclass(frozen=True)
class CaseScores:
    """One case: a figure for each class but the background; NaN where it has none.

    Attributes:
        name: of the case.
        dice: NaN where neither the truth nor the prediction has the class.
        hd95: NaN where one of them lacks it, in mm for volumes and pixels for pictures.
        true, predicted: pixels or voxels of the class.
    """

    name: str
    dice: tuple[float, ...]
    hd95: tuple[float, ...]
    true: tuple[int, ...]
    predicted: tuple[int, ...]


@dataclass(frozen=True)
class ClassFigures:
    """One class over all cases.

    Attributes:
        dice: mean over ``judged`` cases: those in which the truth or the prediction has the class; NaN without any.
        hd95: mean over ``measured`` cases: those in which both have it; NaN without any.
        absent: cases in which neither has it; they are in no mean.
        missed: cases in which only the truth has it: Dice 0, no distance.
        invented: cases in which only the prediction has it: Dice 0, no distance.
    """

    dice: float
    dice_std: float
    hd95: float
    judged: int
    measured: int
    absent: int
    missed: int
    invented: int


@dataclass(frozen=True)
class SegmentationFigures:
    """Scores of a part of a data set.

    Attributes:
        classes: by name, without the background.
        unit: of the distances: ``mm`` or ``px``.
        cases: what the figures are of.
    """

    classes: dict[str, ClassFigures]
    unit: str
    cases: tuple[CaseScores, ...]

    @property
    def dice(self) -> float:
        """Mean over the classes that have one."""
        return _mean([figures.dice for figures in self.classes.values()])[0]

    @property
    def hd95(self) -> float:
        """Mean over the classes that have one."""
        return _mean([figures.hd95 for figures in self.classes.values()])[0]

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what there is not."""
        content = {"dice": self.dice, "hd95": self.hd95, "unit": self.unit}
        classes = {name: asdict(figures) for name, figures in self.classes.items()}
        plain: dict[str, Any] = _without_nan(
            {**content, "classes": classes, "cases": [asdict(case) for case in self.cases]}
        )
        return plain


def score_case(name: str, prediction: Tensor, truth: Tensor, classes: int, spacing: Sequence[float]) -> CaseScores:
    """Compare two masks of one size.

    Args:
        name: of the case.
        prediction, truth: integers (*size); where the truth is ignored, neither counts.
        classes: the background among them.
        spacing: of the pixels or voxels.
    """
    metrics = require("monai.metrics", purpose="Hausdorff distances")
    one_hot = _one_hot(prediction, truth, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are not there; they have no distance, and are counted
        hd95 = metrics.compute_hausdorff_distance(
            *one_hot, include_background=False, percentile=95, spacing=list(spacing)
        )[0]
    sizes = [tuple(int(n) for n in mask.flatten(2).sum(2)[0, 1:]) for mask in one_hot]
    distances = [float(d) if p and t else math.nan for d, p, t in zip(hd95, *sizes, strict=True)]
    return CaseScores(
        name, tuple(score_dice(prediction, truth, classes).tolist()), tuple(distances), sizes[1], sizes[0]
    )


def score_dice(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice of each class but the background: NaN where neither mask has it, 0 where one of them has."""
    metrics = require("monai.metrics", purpose="Dice")
    one_hot = _one_hot(prediction, truth, classes)
    # MONAI's ignore_empty looks at the truth alone: a class that is only predicted would have no Dice, and nobody would see it.
    dice: Tensor = metrics.compute_dice(*one_hot, include_background=False, ignore_empty=False)[0]
    seen = torch.cat(one_hot).flatten(2).sum(dim=(0, 2))[1:]
    return torch.where(seen > 0, dice, torch.nan)


def _one_hot(prediction: Tensor, truth: Tensor, classes: int) -> list[Tensor]:
    """Both masks as float32 (1, classes, *size); where the truth is ignored both are background."""
    masks = [mask.masked_fill(truth == IGNORED, 0) for mask in (prediction, truth)]
    return [torch.stack([mask == label for label in range(classes)])[None].float() for mask in masks]


def summarise(cases: Sequence[CaseScores], class_names: Sequence[str], unit: str) -> SegmentationFigures:
    """Figures of each class over all cases."""
    figures = {}
    for i, name in enumerate(class_names[1:]):
        dice = [case.dice[i] for case in cases if not math.isnan(case.dice[i])]
        hd95 = [case.hd95[i] for case in cases if not math.isnan(case.hd95[i])]
        seen = [(case.true[i] > 0, case.predicted[i] > 0) for case in cases]
        mean, deviation = _mean(dice)
        figures[name] = ClassFigures(
            dice=mean,
            dice_std=deviation,
            hd95=_mean(hd95)[0],
            judged=len(dice),
            measured=len(hd95),
            absent=seen.count((False, False)),
            missed=seen.count((True, False)),
            invented=seen.count((False, True)),
        )
    return SegmentationFigures(figures, unit, tuple(cases))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the population) of the numbers among them; NaN without any."""
    present = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if not len(present):
        return math.nan, math.nan
    return float(present.mean()), float(present.std(correction=0))


def _without_nan(value: Any) -> Any:
    """None for NaN, wherever it is."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
