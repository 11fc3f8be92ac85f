"""Half the resolution between stages: by patch merging, as Swin, VMamba, LocalVMamba and others have it, or a convolution."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from edgemamba.train.models.layers import Permute
from edgemamba.train.models.padding import crop_map, pad_map

Downsample = Literal["merge", "conv2", "conv3"]


class PatchMerging(nn.Module):
    """Half the height and width: four neighbours side by side, normalised, projected (Swin, arXiv:2103.14030, section 3.1).

    Parameters (upstream's names): ``norm`` (4C), ``reduction.weight`` (C', 4C).

    Args:
        dim: C, channels of the map.
        out_dim: C', channels of the result; twice as many in most models.
        odd: what becomes of an odd last row or column: zeros beside it (``pad``), or nothing (``crop``).
        eps: of the norm.
    """

    def __init__(self, dim: int, out_dim: int, odd: Literal["pad", "crop"] = "pad", eps: float = 1e-5) -> None:
        super().__init__()
        self.odd = odd
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, C'), rounded up where odd sides are padded, down where they are cropped."""
        x = pad_map(x, 2) if self.odd == "pad" else crop_map(x, x.shape[1] // 2 * 2, x.shape[2] // 2 * 2)
        batch, height, width, dim = x.shape
        rows, columns = height // 2, width // 2
        x = x.reshape(batch, rows, 2, columns, 2, dim)
        # Of the four neighbours, those of the left column come first, from top to bottom.
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * dim)))


def make_downsample(kind: Downsample, dim: int, out_dim: int, eps: float = 1e-5) -> nn.Module:
    """A layer (B, H, W, C) -> (B, h, w, C') of half the height and width, with a norm of epsilon ``eps``.

    Args:
        kind: ``merge``, which pads odd sides; a convolution of 2 x 2 (``conv2``), which leaves their last row or column out; or
            one of 3 x 3 (``conv3``), for which they are rounded up. Places among the convolution's layers are part of
            upstreams' keys: ``1`` and, of the norm after it, ``3``.
        dim, out_dim: C and C'.
    """
    if kind == "merge":
        return PatchMerging(dim, out_dim, eps=eps)
    kernel, padding = (2, 0) if kind == "conv2" else (3, 1)
    conv = nn.Conv2d(dim, out_dim, kernel, 2, padding)
    return nn.Sequential(Permute(0, 3, 1, 2), conv, Permute(0, 2, 3, 1), nn.LayerNorm(out_dim, eps=eps))
