"""One small model a family, for tests that ask the same of all of them."""

from __future__ import annotations

from typing import Any

import torch

from edgemamba.train import create_model
from edgemamba.train.models.backbone import Backbone

SIDE = 64
CLASSES = 5
DIRECTIONS = (("h", "v_flip"), ("w2", "w2_flip"), ("v", "h_flip"), ("h", "w2"))
STAGES = {"dims": (8, 16, 32), "depths": (1, 2, 1)}
# Name -> options that make it small and leave every kind of its blocks in.
SMALL: dict[str, dict[str, Any]] = {
    "vim_tiny": {"embed_dim": 16, "depth": 4},
    "medmamba_t": STAGES,
    "vmamba_t": STAGES,
    "vanilla_vmamba_t": STAGES,
    "local_vim_t": {"embed_dim": 16, "depth": 4, "directions": DIRECTIONS},
    "local_vim_t_midcls": {"embed_dim": 16, "depth": 4, "directions": DIRECTIONS},
    "local_vmamba_t": STAGES | {"directions": DIRECTIONS},
    "plain_mamba_l1": {"embed_dim": 16, "depth": 4, "dwconv_layers": (0,)},
    "efficientvmamba_t": {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)},
    "mambavision_t": {
        "dim": 8,
        "in_dim": 8,
        "depths": (1, 1, 2, 2),
        "num_heads": (1, 1, 2, 2),
        "window_size": (8, 8, 4, 2),
        "layer_scale": 0.5,
    },
}


def small_options(name: str, **options: Any) -> dict[str, Any]:
    """Keywords of ``create_model`` (timm's too) for the small model of that name."""
    return {"img_size": SIDE, "num_classes": CLASSES, "drop_path_rate": 0.0} | SMALL[name] | options


def small_model(name: str, seed: int = 0, **options: Any) -> Backbone:
    """The small model of that name, with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return create_model(name, **small_options(name, **options))
