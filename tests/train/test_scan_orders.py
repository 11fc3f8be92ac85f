"""Scan orders: permutations, the shapes that their names say, upstream's lists, and errors. (Graphs: test_scan_orders_export.)"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.models.padding import round_up
from edgemamba.train.scan_orders import (
    ScanOrder,
    get_order,
    insert_tokens,
    insert_tokens_both_ways,
    list_orders,
    order_patterns,
    scan_order,
)
from edgemamba.train.scan_orders.registry import register_order
from edgemamba.train.selective_scan import selective_scan

ORDERS = list_orders()
NAMES = [order.name for order in ORDERS]
# Of one direction over maps, which so extend to four.
WALKS = [order.name for order in ORDERS if order.directions == 1 and order.axes in (None, 2)]

sides = st.integers(1, 9)


def grid_for(order: ScanOrder, depth: int, height: int, width: int) -> tuple[int, ...]:
    """A grid that the order takes, of about those extents."""
    if order.axes == 2:
        return round_up(height, order.multiple), round_up(width, order.multiple)
    return 4 * depth, height, width  # the example of "slices{k}" has four


def row_of(name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns that the first direction comes by."""
    return np.divmod(scan_order(name, size)[0].numpy(), size[1])


# ---- permutations


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 3), height=sides, width=sides)
def test_every_position_is_visited_once(name: str, depth: int, height: int, width: int) -> None:
    """By each direction of a full order; of one in parts, by one direction of all."""
    info = get_order(name)
    size = grid_for(info, depth, height, width)
    order = scan_order(name, size)
    positions = math.prod(size)
    assert order.dtype == torch.int32
    assert order.shape == (info.directions, positions // info.parts)
    everywhere = torch.arange(positions, dtype=torch.int32)
    for visited in order.reshape(-1, positions):
        assert torch.equal(visited.sort().values, everywhere)


@pytest.mark.parametrize("pattern", order_patterns(), ids=lambda pattern: pattern.name)
@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 8), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_patterns_take_any_number(pattern, k: int, rows: int, columns: int) -> None:
    order = pattern.make(k)
    assert get_order(order.name).summary == order.summary
    assert str(k) in order.name
    size = (k * rows, columns) if order.axes == 2 and order.multiple == 1 else (k * rows, k * columns)
    walk = scan_order(order.name, size if order.axes == 2 else (*size, 2))
    assert len(walk.unique()) == walk.numel() // (order.directions if order.parts == 1 else 1)


def test_only_the_atrous_orders_are_in_parts() -> None:
    assert {order.name for order in ORDERS if order.parts > 1} == {"atrous2"}
    assert get_order("atrous3").parts == 9


# ---- what the names say


def test_the_walks_are_the_ones_their_names_say() -> None:
    # 0 1 2
    # 3 4 5
    assert scan_order("raster", (2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert scan_order("column", (2, 3)).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_order("bidirectional", (4,)).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert scan_order("cross", (2, 3)).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]
    assert scan_order("window2", (2, 4)).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert scan_order("atrous2", (2, 4)).tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert scan_order("diagonal", (2, 3)).tolist() == [[0, 1, 3, 2, 4, 5]]
    assert scan_order("zigzag", (3, 3)).tolist() == [[0, 1, 3, 6, 4, 2, 5, 7, 8]]
    assert scan_order("spiral", (3, 3)).tolist() == [[0, 1, 2, 5, 8, 7, 6, 3, 4]]
    assert scan_order("radial", (3, 3)).tolist() == [[4, 5, 7, 3, 1, 8, 6, 0, 2]]
    assert scan_order("morton", (2, 4)).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert scan_order("hilbert", (2, 2)).tolist() == [[0, 1, 3, 2]]
    # Two slices of 1 x 3.
    assert scan_order("inter-slice", (2, 1, 3)).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_order("slices2", (2, 1, 3)).tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5]]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("reverse")])
@given(height=sides, width=sides)
def test_reverse_is_the_same_walk_backwards(name: str, height: int, width: int) -> None:
    size = grid_for(get_order(name), 1, height, width)[-2:]
    forward = {"reverse": "raster"}.get(name, name.removesuffix("-reverse"))
    assert torch.equal(scan_order(name, size), scan_order(forward, size).flip(1))


@pytest.mark.parametrize("name", ["snake", "spiral"])
@given(height=st.integers(1, 12), width=st.integers(1, 12))
def test_snake_and_spiral_never_jump(name: str, height: int, width: int) -> None:
    for walk in scan_order(name, (height, width)).numpy():
        y, x = np.divmod(walk, width)
        assert (abs(np.diff(y)) + abs(np.diff(x)) == 1).all()


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 64])
def test_hilbert_never_jumps_on_squares_of_powers_of_two(side: int) -> None:
    y, x = row_of("hilbert", (side, side))
    assert (abs(np.diff(y)) + abs(np.diff(x)) == 1).all()
    assert (y[0], x[0]) == (0, 0)
    assert {y[-1], x[-1]} == {0, side - 1}  # along one side, which one by the number of levels


@pytest.mark.parametrize("name", ["morton", "hilbert"])
@given(height=st.integers(1, 40), width=st.integers(1, 40), level=st.integers(0, 4))
def test_curves_leave_no_aligned_square_before_they_have_filled_it(
    name: str, height: int, width: int, level: int
) -> None:
    y, x = row_of(name, (height, width))
    squares = (y >> level) * 64 + (x >> level)
    entered = 1 + np.count_nonzero(np.diff(squares))
    assert entered == len(np.unique(squares))


@given(height=sides, width=sides)
def test_diagonals(height: int, width: int) -> None:
    y, x = row_of("diagonal", (height, width))
    step = np.diff(y + x)
    assert ((step == 0) | (step == 1)).all()
    assert (np.diff(y)[step == 0] == 1).all()
    y, x = row_of("zigzag", (height, width))
    assert np.isin(np.diff(y + x), (0, 1)).all()
    assert (np.maximum(abs(np.diff(y)), abs(np.diff(x))) <= 1).all()  # never farther than to one of eight neighbours
    assert (x[:2] == [0, 1]).all() or width == 1


@given(height=st.integers(1, 14), width=st.integers(1, 14))
def test_radial_goes_outwards_and_round(height: int, width: int) -> None:
    y, x = row_of("radial", (height, width))
    down, across = 2 * y - (height - 1), 2 * x - (width - 1)
    distance = down**2 + across**2
    assert (np.diff(distance) >= 0).all()
    angle = np.arctan2(down, across) % (2 * np.pi)
    assert (np.diff(angle)[np.diff(distance) == 0] > 0).all()


@given(height=sides, width=sides)
def test_spiral_goes_inwards(height: int, width: int) -> None:
    y, x = row_of("spiral", (height, width))
    ring = np.minimum.reduce([y, x, height - 1 - y, width - 1 - x])
    assert (np.diff(ring) >= 0).all()


# ---- more directions


@pytest.mark.parametrize("name", WALKS)
@given(height=sides, width=sides)
def test_one_direction_extends_to_two_and_four(name: str, height: int, width: int) -> None:
    height, width = grid_for(get_order(name), 1, height, width)[-2:]
    (walk,) = scan_order(name, (height, width))
    two = scan_order(name, (height, width), directions=2)
    assert torch.equal(two, torch.stack([walk, walk.flip(0)]))
    four = scan_order(name, (height, width), directions=4)
    assert four.dtype == torch.int32
    assert torch.equal(four[[0, 2]], two)
    assert torch.equal(four[3], four[1].flip(0))
    # The second direction walks the transposed map.
    y, x = np.divmod(scan_order(name, (width, height))[0].numpy(), height)
    assert (four[1].numpy() == x * width + y).all()


@given(height=sides, width=sides)
def test_the_published_orders_are_extensions_of_raster(height: int, width: int) -> None:
    size = (height, width)
    assert torch.equal(scan_order("raster", size, directions=4), scan_order("cross", size))
    assert torch.equal(scan_order("raster", size, directions=2), scan_order("bidirectional", size))
    assert torch.equal(scan_order("column", size, directions=4), scan_order("cross", size)[[1, 0, 3, 2]])


@given(size=st.tuples(sides, sides), place=st.sampled_from(["none", "first", "middle", "double"]))
def test_tokens_among_a_maps_positions(size: tuple[int, int], place: str) -> None:
    patches = math.prod(size)
    rows = {"none": [], "first": [0], "middle": [patches // 2], "double": [0, patches + 1]}[place]
    length = patches + len(rows)
    raster = insert_tokens_both_ways(scan_order("raster", size, directions=2), rows)
    assert torch.equal(raster, scan_order("bidirectional", (length,)))
    walk = insert_tokens(scan_order("spiral", size)[0], rows)
    assert walk.dtype == torch.int32
    assert walk[rows].tolist() == rows
    assert walk.sort().values.tolist() == list(range(length))
    # Without the tokens it is the walk of the map.
    kept = [i for i in range(length) if i not in rows]
    numbers = torch.full((length,), -1).scatter(0, torch.tensor(kept, dtype=torch.int64), torch.arange(patches))
    assert torch.equal(numbers[walk[kept].long()].int(), scan_order("spiral", size)[0])


# ---- upstream's lists

# Upstream's names of orders -> ours. Three of them are the same four directions.
UPSTREAM = {
    "medmamba_ss2d": "cross",
    "vmamba_cross2d": "cross",
    "vmamba_v0": "cross",
    "vmamba_unidi": "cross-unidirectional",
    "vmamba_bidi": "cross-bidirectional",
}
ATROUS = "efficientvmamba_es2d_step2"


def ops_file(golden: Path, name: str) -> Path:
    path = golden / "ops" / name
    if not path.is_file():
        pytest.skip(f"{path} is not in this folder of golden cases")
    return path


@pytest.mark.parametrize("upstream", [*UPSTREAM, ATROUS])
def test_orders_equal_upstream(golden: Path, upstream: str) -> None:
    lists = load_file(ops_file(golden, "op_scan_orders.safetensors"))
    lists = {key: value for key, value in lists.items() if key.startswith(f"scan_order/{upstream}/")}
    assert lists
    for key, expected in lists.items():
        height, width = (int(extent) for extent in key.rpartition("/")[2].split("x"))
        if upstream == ATROUS:
            order = unpadded(scan_order("atrous2", (round_up(height, 2), round_up(width, 2))), height, width)
        else:
            order = scan_order(UPSTREAM[upstream], (height, width))
        assert torch.equal(order, expected), key


def unpadded(order: Tensor, height: int, width: int) -> Tensor:
    """An order of the map enlarged to even sides -> the positions of the map itself, -1 for those that it has not."""
    y, x = torch.div(order, round_up(width, 2), rounding_mode="floor"), order % round_up(width, 2)
    return torch.where((y < height) & (x < width), y * width + x, -1).to(torch.int32)


def test_windows_and_columns_equal_local_mamba(golden: Path) -> None:
    grids = json.loads(ops_file(golden, "op_local_scan_orders.json").read_text())["grids"]
    names = {"h": "raster", "h_flip": "reverse", "v": "column", "v_flip": "column-reverse"}
    names |= {"w2": "window2", "w2_flip": "window2-reverse", "w7": "window7", "w7_flip": "window7-reverse"}
    compared = set()
    for grid, directions in grids.items():
        height, width = (int(extent) for extent in grid.split("x"))
        for direction, lists in directions.items():
            if -1 in lists["scan"]:  # padded, of which test_local_mamba is
                continue
            assert scan_order(names[direction], (height, width))[0].tolist() == lists["scan"], (grid, direction)
            compared.add(direction)
    assert compared == set(names)


def test_snake_equals_plain_mamba(golden: Path) -> None:
    grids = json.loads(ops_file(golden, "op_plain_scan_orders.json").read_text())["grids"]
    assert grids
    for grid, lists in grids.items():
        height, width = (int(extent) for extent in grid.split("x"))
        assert scan_order("snake", (height, width)).tolist() == lists["orders"], grid


def test_slices_equal_segmamba(golden: Path) -> None:
    """The official mixer of three directions, of which upstream permutes the tokens, by one scan with "slices{k}"."""
    path = golden / "segmamba" / "mamba_v3_block.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not in this folder of golden cases")
    tensors = load_file(path)
    for case in json.loads(path.with_suffix(".json").read_text())["cases"]:
        prefix, slices = f"case{case['case']}/", case["constructor"]["nslices"]
        state = {key.removeprefix(f"{prefix}state/"): value.double() for key, value in tensors.items() if prefix in key}
        x = tensors[f"{prefix}input"].double()
        order = scan_order(f"slices{slices}", (1, 1, x.shape[1]))
        torch.testing.assert_close(
            three_ways(state, x, order, case["dt_rank"]), tensors[f"{prefix}out64"], rtol=0, atol=1e-8
        )


def three_ways(state: dict[str, Tensor], x: Tensor, order: Tensor, rank: int) -> Tensor:
    """SegMamba's mixer: (B, L, C) -> (B, L, C). The convolutions run along the walks."""
    value, gate = F.linear(x, state["in_proj.weight"], state.get("in_proj.bias")).chunk(2, dim=-1)
    parts: list[tuple[Tensor, ...]] = []
    for suffix, walk in zip(("", "_b", "_s"), order.long(), strict=True):
        weight = state[f"conv1d{suffix}.weight"]
        along = F.pad(value[:, walk].transpose(1, 2), (weight.shape[2] - 1, 0))
        steps = F.silu(F.conv1d(along, weight, state.get(f"conv1d{suffix}.bias"), groups=weight.shape[0]))
        u = torch.empty_like(value).index_copy(1, walk, steps.transpose(1, 2))
        states = state[f"A{suffix}_log"].shape[1]
        dt, B, C = F.linear(u, state[f"x_proj{suffix}.weight"]).split([rank, states, states], dim=-1)
        delta = F.linear(dt, state[f"dt_proj{suffix}.weight"])
        own = (-state[f"A{suffix}_log"].exp(), state[f"D{suffix}"], state[f"dt_proj{suffix}.bias"])
        parts.append((u, delta, B, C, *own))
    u, delta, B, C, A, D, bias = (
        torch.stack(group, dim=2 if group[0].dim() == 3 else 0) for group in zip(*parts, strict=True)
    )
    y = selective_scan(u, delta, A, B, C, D, bias, order)
    return F.linear(y * F.silu(gate), state["out_proj.weight"], state.get("out_proj.bias"))


# ---- errors


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ScanArgumentError, match=r"'rastr' is not known; nearest: raster"):
        scan_order("rastr", (2, 2))
    for name in ("window", "window0", "window-3", "window3-revers", "atrous", "slices01"):
        with pytest.raises(ScanArgumentError, match="is not known"):
            scan_order(name, (6, 6))
    with pytest.raises(ScanArgumentError, match=r"'cross' takes 2 extents, not 3"):
        scan_order("cross", (2, 2, 2))
    with pytest.raises(ScanArgumentError, match=r"'inter-slice' takes 3 extents, not 2"):
        scan_order("inter-slice", (2, 2))
    with pytest.raises(ScanArgumentError, match="positive extents"):
        scan_order("raster", (0, 3))
    with pytest.raises(ScanArgumentError, match=r"'window3' takes multiples of 3, not \(6, 7\)"):
        scan_order("window3", (6, 7))
    with pytest.raises(ScanArgumentError, match="'slices4' takes a multiple of 4 positions, not the 27"):
        scan_order("slices4", (3, 3, 3))
    with pytest.raises(ScanArgumentError, match=r"'cross' has 4 direction\(s\), the layer needs 2"):
        scan_order("cross", (2, 2), directions=2)
    with pytest.raises(ScanArgumentError, match=r"'raster' has 1 direction\(s\), the layer needs 4"):
        scan_order("raster", (2, 2, 2), directions=4)
    with pytest.raises(ValueError, match="'raster' is registered twice"):
        register_order("raster", directions=1, axes=None, summary="")(get_order("raster").build)
