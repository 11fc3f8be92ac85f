"""Score a segmenter on cases, at the resolution of their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgemamba.train.segmentation.cases import Case, Cases, VolumeCases
from edgemamba.train.segmentation.predicting import resize_logits, slide
from edgemamba.train.segmentation.scoring import SegmentationFigures, score_case, summarise


def evaluate(
    model: nn.Module, cases: Cases, class_names: Sequence[str], *, patch: Sequence[int] | None, overlap: float = 0.5
) -> SegmentationFigures:
    """Dice and HD95 of every class on every case.

    Args:
        model: where it is; it is put into evaluation mode and back.
        cases: prepared for it.
        class_names: the background first.
        patch: of sliding windows; None gives the model each case whole.
        overlap: of the windows.

    Raises:
        SourceError, DataError: a case cannot be read.
    """
    was_training = model.training
    model.eval()
    scores = []
    for index, pair in enumerate(cases.pairs):
        case = cases.read(index)
        mask = torch.from_numpy(predict_mask(model, case, patch=patch, overlap=overlap))
        scores.append(score_case(pair.name, mask, torch.from_numpy(case.truth), len(class_names), case.spacing))
    model.train(was_training)
    return summarise(scores, class_names, "mm" if isinstance(cases, VolumeCases) else "px")


@torch.inference_mode()
def predict_mask(
    model: nn.Module, case: Case, *, patch: Sequence[int] | None, overlap: float = 0.5
) -> NDArray[np.uint8]:
    """The class with the largest logit at every pixel or voxel of the truth: uint8 of its size."""
    pixels = case.pixels[None].to(next(model.parameters()).device)
    logits = model(pixels) if patch is None else slide(model, pixels, patch, overlap)
    mask: NDArray[np.uint8] = resize_logits(logits.float(), case.truth.shape)[0].argmax(0).to(torch.uint8).cpu().numpy()
    return mask
