"""A run that diverged: what it died of is kept, and what it had reached is not written over."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edgemamba.runtime.errors import TrainingError


def save_batch(folder: Path, pixels: Tensor, labels: Tensor, *, step: int, epoch: int, rank: int) -> Path:
    """Write the batch of a step to ``diverged_step{step}_rank{rank}.npz`` in the folder of the run.

    Args:
        folder: of the run.
        pixels: float32 (B, 3, H, W) as the model read them: augmented, normalised and mixed.
        labels: int64 (B,), or float32 (B, classes) where mixup made them.
        step, epoch, rank: of the batch; they are stored beside it.

    Returns:
        The file; ``numpy.load`` reads it. No name of a picture is in it, for names may be of patients.

    Raises:
        TrainingError: it cannot be written.
    """
    path = folder / f"diverged_step{step}_rank{rank}.npz"
    shown, wanted = pixels.detach().float().cpu().numpy(), labels.detach().cpu().numpy()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, pixels=shown, labels=wanted, step=step, epoch=epoch, rank=rank)
    except OSError as error:
        raise TrainingError(
            f"training diverged at step {step} (epoch {epoch}), the last checkpoint is intact, and its batch cannot be "
            f"written to {path}: {error.strerror}"
        ) from None
    return path


@torch.no_grad()
def not_finite(model: nn.Module) -> str | None:
    """What of a model's parameters holds an infinity or a NaN, by name, or None; all ranks must ask, and hear the same.

    The loss shows it only one step later, which is too late where an epoch's last step broke the weights: they would be
    validated, and written over the last good checkpoint.
    """
    # Of a sharded model every rank looks at its own share.
    shares = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    # One number for all, because every look at one waits for the device.
    total = torch.stack([share.float().abs().sum() for share in shares.values()]).sum()
    broken = None
    if not math.isfinite(float(total)):
        broken = next((name for name, share in shares.items() if not bool(torch.isfinite(share).all())), None)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.tensor(float(broken is not None), device=total.device)
        torch.distributed.all_reduce(ranks)
        if broken is None and ranks:
            broken = "a weight of another rank"
    return broken
