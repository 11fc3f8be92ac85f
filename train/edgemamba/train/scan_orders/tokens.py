"""Orders of a map laid over a sequence in which class tokens stand between the map's positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def insert_tokens(walk: Tensor, rows: Sequence[int]) -> Tensor:
    """A walk over positions -> the walk over a sequence of them and of tokens that are not of the map.

    Each token is visited at the step that has its own number, so that it has as many steps before it in every walk as it has
    in a raster; the positions are walked as before.

    Args:
        walk: (S,) int32 positions.
        rows: indices of the tokens in the sequence, rising; they may be symbolic.

    Returns:
        (S + len(rows),) int32.
    """
    for row in rows:
        moved = walk + (walk >= row).to(torch.int32)
        walk = torch.cat([moved[:row], torch.full_like(walk[:1], row), moved[row:]])
    return walk


def insert_tokens_both_ways(order: Tensor, rows: Sequence[int]) -> Tensor:
    """An order (2, S) whose second direction goes backwards: the tokens have the same place in it, from its end.

    What "raster" and its reverse give so is "bidirectional" over the whole sequence.
    """
    forward, backward = order.unbind()
    return torch.stack([insert_tokens(forward, rows), insert_tokens(backward.flip(0), rows).flip(0)])
