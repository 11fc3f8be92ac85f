"""Backbones on the selective scan: make one by name, give it an official checkpoint, train it."""

from __future__ import annotations

from edgemamba.train.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
