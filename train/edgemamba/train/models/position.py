"""Where a token is: position embeddings carried to another grid, and rotations by position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.train.models.options import pair

# Rotations were defined on a grid of 14 x 14; positions of other grids are scaled to it.
ROTATION_GRID = 14
ROTATION_BASE = 10000.0


def split_rows(tokens: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(1, L, C) -> the given rows (1, len(rows), C), and the others in their order (1, L - len(rows), C)."""
    kept = [i for i in range(tokens.shape[1]) if i not in set(rows)]
    return tokens[:, list(rows)], tokens[:, kept]


def insert_rows(patches: Tensor, extra: Tensor, rows: Sequence[int]) -> Tensor:
    """The inverse of :func:`split_rows`: put row i of ``extra`` (1, len(rows), C) at ``rows[i]`` of the result."""
    for i, row in enumerate(rows):
        patches = torch.cat([patches[:, :row], extra[:, i : i + 1], patches[:, row:]], dim=1)
    return patches


def resize_grid(patches: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, h * w, C) embedding of a grid -> (1, h' * w', C) of another: bicubic, corners not aligned, no antialiasing."""
    picture = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(picture, size=new, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def fit_grid(patches: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """:func:`resize_grid` for a grid that may be the embedding's own, for which it is handed back as it is.

    Sizes that are symbolic, while tracing, are never taken for its own: the answer for the trace's example would become a
    condition on every other. (At its own size, resizing changes nothing.)
    """
    same = all(isinstance(side, int) and side == known for side, known in zip(grid, own, strict=True))
    return patches if same else resize_grid(patches, own, grid)


class AxialRotation(nn.Module):
    """Rotary position embedding over a grid, as the Vim models of January 2024 and LocalVim have it.

    Channels 2m and 2m + 1 are the two coordinates of a point that is turned by an angle; the first half of the channels
    turns by the token's row, the second by its column. Where there is one token more than the grid has positions, the first
    one is left as it is.

    Buffers (of the state, as upstream's): ``freqs_cos``, ``freqs_sin`` (rows * columns, C).

    Args:
        dim: C, a multiple of four.
        grid: rows and columns of tokens; one number for both. Upstream's are square.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, dim: int, grid: int | tuple[int, int]) -> None:
        super().__init__()
        self.grid = pair(grid)
        axis = dim // 2
        frequency = ROTATION_BASE ** (-torch.arange(0, axis, 2, dtype=torch.float32) / axis)
        rows, columns = (
            (torch.arange(side, dtype=torch.float32) / side * ROTATION_GRID)[:, None] * frequency for side in self.grid
        )
        rows, columns = (angle.repeat_interleave(2, dim=1) for angle in (rows, columns))
        height, width = self.grid
        angles = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
        angles = angles.reshape(height * width, dim)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def tables(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines for the tokens of a grid, each (rows * columns, C).

        Those of another grid than its own are resized like pictures, each for itself, as LocalVim does it; a pair is then
        no longer of length one.
        """
        cos, sin = (fit_grid(table[None], self.grid, grid)[0] for table in (self.freqs_cos, self.freqs_sin))
        return cos, sin

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, L, C) -> the same, rotated; by its own tables, or by those that :meth:`tables` made for another grid."""
        if tables is not None:
            return _rotate(tokens, *tables)
        extra = tokens.shape[1] - self.freqs_cos.shape[0]
        first, rest = tokens[:, :extra], tokens[:, extra:]
        return torch.cat([first, _rotate(rest, self.freqs_cos, self.freqs_sin)], dim=1)


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (2m, 2m + 1)."""
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return tokens * cos + turned * sin


def upstream_resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], extra: int) -> Tensor:
    """A position embedding for another grid, as Vim's fine-tuning script (``main.py --finetune``) makes it.

    The first ``extra`` rows are kept as the class tokens' and the others are taken for a square grid in row-major order,
    resized bicubically. With a class token in the middle that is off by one: its row, M / 2, is resized as if it were a
    patch's, and row 0, a patch's, is kept as if it were its. The official stride-8 models were trained from exactly this, so
    it is repeated here; it is a start for training and nothing else. To run a model at another size without training, make
    it with ``dynamic_img_size=True``, which moves the class token's row where it belongs.

    Args:
        pos_embed: (1, extra + s * s, C).
        grid: rows and columns wanted.
        extra: class tokens.

    Returns:
        (1, extra + rows * columns, C).
    """
    kept, patches = pos_embed[:, :extra], pos_embed[:, extra:]
    side = math.isqrt(patches.shape[1])
    return torch.cat([kept, resize_grid(patches, (side, side), grid)], dim=1)
