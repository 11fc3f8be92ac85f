"""Backbones on the selective scan: make one by name, give it an official checkpoint, train it."""

from __future__ import annotations

from edgemamba.train.checkpoint import LoadReport, load_checkpoint
from edgemamba.train.registry import create_model, list_models

__all__ = ["LoadReport", "create_model", "list_models", "load_checkpoint"]
