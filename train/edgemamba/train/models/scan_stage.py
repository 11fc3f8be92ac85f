"""A stage of a hierarchical backbone: blocks that scan one map, then half the resolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemamba.train.models.padding import round_up
from edgemamba.train.models.ss2d import DIRECTIONS
from edgemamba.train.scan_orders import scan_order


class ScanStage(nn.Module):
    """Blocks on maps of one size, which share the order of their scans, then a downsampling (Identity in a last stage).

    Args:
        blocks: of (B, H, W, C) and an order (4, S) -> (B, H, W, C).
        downsample: of the last block's result.
        scan: a registered order of four directions, or one that extends to four.
        multiple: the order is of the map enlarged to sides that are multiples of this, as the blocks' scans enlarge it.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module, scan: str, multiple: int = 1) -> None:
        super().__init__()
        self.scan, self.multiple = scan, multiple
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, grad_checkpointing: bool = False, maps: list[Tensor] | None = None) -> Tensor:
        """(B, H, W, C) -> what the downsampling makes of the blocks' result, which is appended to ``maps`` (B, C, H, W)."""
        size = (round_up(x.shape[1], self.multiple), round_up(x.shape[2], self.multiple))
        order = scan_order(self.scan, size, x.device, directions=DIRECTIONS)
        for block in self.blocks:
            x = checkpoint(block, x, order, use_reentrant=False) if grad_checkpointing else block(x, order)
        if maps is not None:
            maps.append(x.permute(0, 3, 1, 2))
        return self.downsample(x)
