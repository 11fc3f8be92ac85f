"""How LocalMamba's layers walk over a map (Huang et al., arXiv:2403.09338, section 4.1), and how their results are added up.

The directions of one layer have scans of different lengths, since a map is padded to whole windows, and their results meet only
after each went through a gate computed from itself. So every direction is a scan of its own, over :class:`Walk`'s steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.train.models.layers import at_least_float32
from edgemamba.train.models.local_directions import parse_direction
from edgemamba.train.models.options import check_scan
from edgemamba.train.models.padding import round_up
from edgemamba.train.scan_orders import Size, get_order, insert_tokens, scan_order
from edgemamba.train.selective_scan import selective_scan

#: The name of a layer's own directions among scan orders.
LOCAL = "local"


@dataclass(frozen=True)
class Walk:
    """One direction over the M tokens of a map, in S >= M steps.

    Attributes:
        read: (S,) int32, the token that each step reads. Those from M on are padding, zeros, one token a step.
        write: (M,) int32, the step whose result each token gets.
        in_place: each token gets the result of the step that read it. Upstream's columns (``v``, ``v_flip``) on a map that is
            not square do not, see :func:`local_walk`.
    """

    read: Tensor
    write: Tensor
    in_place: bool

    @property
    def padded(self) -> bool:
        """Whether there is padding; True as well where a trace with symbolic sizes cannot know."""
        steps, tokens = self.read.shape[0], self.write.shape[0]
        return not (isinstance(steps, int) and isinstance(tokens, int) and steps == tokens)

    @property
    def origin(self) -> Tensor:
        """(M,) int32, the token that was read at the step whose result each token gets."""
        return self.read.index_select(0, self.write)

    def pad(self, tokens: Tensor) -> Tensor:
        """(B, M, C) -> (B, S, C)."""
        return F.pad(tokens, (0, 0, 0, self.read.shape[0] - tokens.shape[1])) if self.padded else tokens

    def with_cls(self, row: int) -> Walk:
        """The walk over M + 1 tokens of which that at ``row`` is a class token: it is read at step ``row``, and kept there.

        The other tokens are walked as before. With padding the class token is not in the middle of the steps any more.
        """
        return Walk(insert_tokens(self.read, [row]), insert_tokens(self.write, [row]), self.in_place)


def local_walk(direction: str, size: Size, device: torch.device | None = None) -> Walk:
    """The walk of a direction over a map.

    ``wK`` pads the map on the right and at the bottom to whole windows of K x K. ``_flip`` reverses all steps, those on padding
    included.

    ``v`` and ``v_flip`` hold upstream's mistake: it puts the results of a walk by columns of ``height`` back as if they came
    by columns of ``width``. On square maps, which is what the models were trained on, that is the same; on others a token
    gets the result of another one. Released weights and golden vectors were made so, and it is kept.

    Args:
        direction: see :mod:`edgemamba.train.models.local_directions`.
        size: height and width of the map, both symbolic or both not.
        device: of the indices.

    Raises:
        ModelError: it is not a direction.
    """
    kind, side, flip = parse_direction(direction)
    height, width = size
    tokens = scan_order("raster", size, device)[0]
    if kind == "w":
        windows = padded_walks(f"window{side}", size, device)[0]
        read, write = windows.read, windows.write
    elif kind == "v":
        read = scan_order("column", size, device)[0]
        write = (tokens % height) * width + _div(tokens, height)
    else:
        read = write = tokens
    if flip:
        read, write = read.flip(0), read.shape[0] - 1 - write
    square = isinstance(height, int) and isinstance(width, int) and height == width
    return Walk(read, write, kind != "v" or square)


def order_walk(row: Tensor) -> Walk:
    """The walk of one direction (M,) of a scan order that visits every token."""
    steps = torch.arange(row.shape[0], dtype=torch.int32, device=row.device)
    return Walk(row, torch.empty_like(steps).scatter(0, row.long(), steps), True)


def padded_walks(
    scan: str, size: Size, device: torch.device | None = None, directions: int | None = None
) -> list[Walk]:
    """The walks of a scan order that visits every token, over a map that is padded to the multiples that the order needs."""
    multiple = get_order(scan).multiple
    if multiple == 1:
        return [order_walk(row) for row in scan_order(scan, size, device, directions)]
    height, width = size
    wide = round_up(width, multiple)
    cells = scan_order(scan, (round_up(height, multiple), wide), device, directions)
    row, column = _div(cells, wide), cells % wide
    # Tokens of the map before a cell of the padded one; of a cell in the map that is its own number.
    before = row.clamp(max=height) * width + (row < height) * column.clamp(max=width)
    inside = (row < height) & (column < width)
    read = torch.where(inside, before, height * width + cells - before).to(torch.int32)
    token = scan_order("raster", size, device)[0]
    cell = _div(token, width) * wide + token % width
    return [Walk(row, order_walk(own).write.index_select(0, cell), True) for row, own in zip(read, cells, strict=True)]


def check_layer_scan(scan: str, layers: Iterable[Sequence[str]]) -> None:
    """Refuse a scan order that cannot be in the place of layers' directions.

    Raises:
        ModelError: it is not of maps, does not extend to as many directions, or does not visit every position in each.
        ScanArgumentError: there is none of that name.
    """
    if scan == LOCAL:
        return
    check_scan(scan, {len(names) for names in layers})
    if get_order(scan).parts > 1:
        raise ModelError(
            f"scan {scan!r} visits only a part of the map in each direction; LocalMamba's layers need all of it"
        )


def layer_walks(
    layers: Sequence[Sequence[str]], scan: str, size: Size, device: torch.device | None = None
) -> list[list[Walk]]:
    """The walks of several layers over maps of one size; what they have in common is made once.

    Args:
        layers: the directions of each.
        scan: ``local`` for those; a scan order that :func:`check_layer_scan` lets pass in their place.
        size: height and width.
        device: of the indices.
    """
    if scan == LOCAL:
        walks = {name: local_walk(name, size, device) for name in dict.fromkeys(sum(map(tuple, layers), ()))}
        return [[walks[name] for name in names] for names in layers]
    orders = {count: padded_walks(scan, size, device, count) for count in {len(names) for names in layers}}
    return [orders[len(names)] for names in layers]


def scan_direction(
    u: Tensor, projected: Tensor, dt_weight: Tensor, A_log: Tensor, D: Tensor, delta_bias: Tensor, order: Tensor
) -> Tensor:
    """The scan of one direction.

    Args:
        u: (B, P, E) values.
        projected: (B, P, R + 2N) low-rank step sizes, B and C.
        dt_weight: (E, R), from low rank to step sizes.
        A_log: (E, N).
        D, delta_bias: (E).
        order: (S,) int32, the position of each step.

    Returns:
        (B, P, E).
    """
    rank, states = dt_weight.shape[1], A_log.shape[1]
    dt, B, C = projected.unsqueeze(2).split([rank, states, states], dim=-1)
    return selective_scan(
        u.unsqueeze(2),
        F.linear(dt, dt_weight),
        -torch.exp(at_least_float32(A_log))[None],
        B,
        C,
        at_least_float32(D)[None],
        at_least_float32(delta_bias)[None],
        order[None],
    )


class MultiScan(nn.Module):
    """The sum of the directions' results.

    In the supernet, in which the directions of the published models were searched, of the normalised results, weighted by the
    softmax of ``weights`` (K, 1, 1, 1).

    Args:
        candidates: K of a supernet's layer; 0 for a plain sum.
        attn: what each result goes through before, where upstream keeps it among this module's parameters.
    """

    def __init__(self, candidates: int = 0, attn: nn.Module | None = None) -> None:
        super().__init__()
        self.attn = attn
        self.weights = nn.Parameter(1e-3 * torch.randn(candidates, 1, 1, 1)) if candidates else None

    def forward(self, results: Sequence[Tensor]) -> Tensor:
        """K times (B, L, C) -> (B, L, C)."""
        if self.attn is not None:
            results = [self.attn(y) for y in results]
        if self.weights is not None:
            shares = self.weights.softmax(0).unbind()
            results = [share * F.layer_norm(y, y.shape[-1:]) for share, y in zip(shares, results, strict=True)]
        total = results[0]
        for y in results[1:]:
            total = total + y
        return total


def _div(a: Tensor, b: int) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")
