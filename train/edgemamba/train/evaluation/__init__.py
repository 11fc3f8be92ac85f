"""Evaluation: logits of PyTorch models and of engines by one data path, figures of medical classification, and proof that
both say the same."""

from __future__ import annotations

from edgemamba.train.evaluation.candidates import TorchCandidate
from edgemamba.train.evaluation.evaluating import evaluate_parts
from edgemamba.train.evaluation.figures import Figures, measure
from edgemamba.train.evaluation.predicting import Outcome, predict

__all__ = ["Figures", "Outcome", "TorchCandidate", "evaluate_parts", "measure", "predict"]
