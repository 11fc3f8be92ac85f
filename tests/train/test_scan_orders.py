"""Scan orders: permutations, upstream's lists, constants of an exported graph, and traceable for symbolic sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.scan_orders import get_order, list_orders, scan_order

NAMES = [order.name for order in list_orders()]
# Upstream's names of orders -> ours. Two of upstream's are the same four directions.
UPSTREAM = {"medmamba_ss2d": "cross", "vmamba_cross2d": "cross", "vmamba_v0": "cross"}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_every_direction_is_a_permutation(name: str, height: int, width: int) -> None:
    order = scan_order(name, (height, width))
    assert order.dtype == torch.int32
    assert order.shape == (get_order(name).directions, height * width)
    everywhere = torch.arange(height * width, dtype=torch.int32)
    for direction in order:
        assert torch.equal(direction.sort().values, everywhere)


def test_the_walks_are_the_ones_their_names_say() -> None:
    # 0 1 2
    # 3 4 5
    assert scan_order("raster", (2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert scan_order("reverse", (2, 3)).tolist() == [[5, 4, 3, 2, 1, 0]]
    assert scan_order("column", (2, 3)).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_order("column-reverse", (2, 3)).tolist() == [[5, 2, 4, 1, 3, 0]]
    assert scan_order("bidirectional", (4,)).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert scan_order("cross", (2, 3)).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_orders_equal_upstream(golden: Path) -> None:
    path = golden / "ops" / "op_scan_orders.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not in this folder of golden cases")
    compared = 0
    for key, expected in load_file(path).items():
        kind, _, rest = key.partition("/")
        upstream, _, size = rest.partition("/")
        if kind == "scan_order" and upstream in UPSTREAM:
            height, width = (int(extent) for extent in size.split("x"))
            assert torch.equal(scan_order(UPSTREAM[upstream], (height, width)), expected), key
            compared += 1
    assert compared >= len(UPSTREAM)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ScanArgumentError, match=r"'rastr' is not known; nearest: raster"):
        scan_order("rastr", (2, 2))
    with pytest.raises(ScanArgumentError, match=r"'cross' takes 2 extents, not 3"):
        scan_order("cross", (2, 2, 2))
    with pytest.raises(ScanArgumentError, match="positive extents"):
        scan_order("raster", (0, 3))


class _Order(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return scan_order(self.name, x.shape[-2:], x.device)


@pytest.mark.parametrize("name", NAMES)
def test_one_exported_graph_serves_every_size(name: str) -> None:
    size = {2: torch.export.Dim("height", min=1, max=64), 3: torch.export.Dim("width", min=1, max=64)}
    program = torch.export.export(_Order(name), (torch.zeros(1, 1, 4, 6),), dynamic_shapes={"x": size})
    for height, width in ((4, 6), (7, 3), (2, 13)):
        assert torch.equal(program.module()(torch.zeros(1, 1, height, width)), scan_order(name, (height, width)))


def test_an_order_made_while_tracing_does_not_leak() -> None:
    torch.export.export(_Order("cross"), (torch.zeros(1, 1, 5, 6),))
    assert type(scan_order("cross", (5, 6))) is Tensor
