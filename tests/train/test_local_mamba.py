"""LocalMamba: walks, mixers against a plain reading of the architecture notes, other sizes and orders, refusals, tracing.

What every family does (gradients, checkpointing, feature maps, classifiers) is in test_timm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train import create_model
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.local_directions import ALL_DIRECTIONS
from edgemamba.train.models.local_scan import Walk, layer_walks, local_walk, order_walk
from edgemamba.train.models.local_vim import LocalVim, LocalVimConfig
from edgemamba.train.models.local_vim_mixer import LocalMixer
from edgemamba.train.models.local_vmamba import LocalSS2D, LocalVMambaConfig
from edgemamba.train.models.position import AxialRotation, resize_grid
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.registry import model_from_upstream_config
from edgemamba.train.scan_orders import scan_order

# Every kind of direction in two layers; with patches of 4 pixels, windows of 3 and 5 do not fit into the maps.
LAYERS = (("h", "v_flip", "w3", "w3_flip"), ("h_flip", "v", "w2", "w5"))
SMALL: dict[str, dict[str, Any]] = {
    "local_vim_t": {"patch_size": 4, "embed_dim": 16, "depth": 2, "directions": LAYERS},
    "local_vim_t_midcls": {"patch_size": 4, "embed_dim": 16, "depth": 2, "directions": LAYERS},
    "local_vim_t_search": {"patch_size": 4, "embed_dim": 16, "depth": 2},
    "local_vmamba_t": {"dims": (8, 16), "depths": (1, 1), "directions": LAYERS},
    "local_vmamba_t_search": {"dims": (8, 16), "depths": (1, 1)},
}


def small(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return create_model(name, **({"img_size": 32, "num_classes": 3, "drop_path_rate": 0.0} | SMALL[name] | options))


def picture(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def randomise(module: nn.Module) -> nn.Module:
    """Parameters that start equal, or as zeros, hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.double()


# ---- walks


def plain_walk(direction: str, height: int, width: int) -> tuple[list[int], list[int]]:
    """Token of each step (-1: padding) and step of each token, by loops."""
    kind = direction.removesuffix("_flip")
    if kind == "h":
        scan = list(range(height * width))
        back = list(scan)
    elif kind == "v":
        scan = [row * width + column for column in range(width) for row in range(height)]
        back = [
            (token % height) * width + token // height for token in range(height * width)
        ]  # upstream's, for squares
    else:
        side = int(kind[1:])
        scan = []
        for top in range(0, height, side):
            for left in range(0, width, side):
                for row in range(top, top + side):
                    for column in range(left, left + side):
                        scan.append(row * width + column if row < height and column < width else -1)
        back = [scan.index(token) for token in range(height * width)]
    if direction.endswith("_flip"):
        scan, back = scan[::-1], [len(scan) - 1 - step for step in back]
    return scan, back


def check_walk(walk: Walk, scan: list[int], back: list[int]) -> None:
    tokens = len(back)
    read = walk.read.tolist()
    assert sorted(read) == list(range(len(scan)))  # padding is distinct, as the operator wants it
    assert [-1 if token >= tokens else token for token in read] == scan
    assert walk.write.tolist() == back
    assert not walk.in_place or walk.origin.tolist() == list(range(tokens))
    assert walk.padded == (len(scan) > tokens)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (5, 3), (4, 6), (1, 2), (13, 16)])
@pytest.mark.parametrize("direction", [*ALL_DIRECTIONS, "w3", "w4_flip"])
def test_walks_are_those_of_the_notes(direction: str, size: tuple[int, int]) -> None:
    check_walk(local_walk(direction, size), *plain_walk(direction, *size))


def test_walks_are_upstreams(golden: Path) -> None:
    path = golden / "ops" / "op_local_scan_orders.json"
    if not path.is_file():
        pytest.skip("the folder of golden cases holds no lists of LocalMamba's orders")
    for grid, directions in json.loads(path.read_text())["grids"].items():
        height, width = map(int, grid.split("x"))
        for direction, lists in directions.items():
            check_walk(local_walk(direction, (height, width)), lists["scan"], lists["reverse"])


def test_only_columns_of_maps_that_are_not_square_write_elsewhere() -> None:
    elsewhere = {name for name in ALL_DIRECTIONS if not local_walk(name, (4, 6)).in_place}
    assert elsewhere == {"v", "v_flip"}
    assert all(local_walk(name, (6, 6)).in_place for name in ALL_DIRECTIONS)


@pytest.mark.parametrize("direction", ["h_flip", "v", "w2"])
def test_a_class_token_stays_at_its_step(direction: str) -> None:
    height, width = 3, 5
    tokens, row = height * width, height * width // 2
    walk, bare = local_walk(direction, (height, width)).with_cls(row), local_walk(direction, (height, width))
    assert walk.read[row] == walk.write[row] == row
    others = [token - (token > row) for token in walk.read.tolist() if token != row]
    assert others == bare.read.tolist()
    assert sorted(walk.read.tolist()) == list(range(len(bare.read) + 1))
    for token in range(tokens):
        moved = int(walk.write[token + (token >= row)])
        assert moved - (moved > row) == bare.write[token]


def test_a_scan_order_is_walked_and_written_back() -> None:
    row = scan_order("column-reverse", (3, 4))[0]
    walk = order_walk(row)
    assert walk.in_place
    assert walk.origin.tolist() == list(range(12))
    assert torch.equal(walk.read, row)


def test_layers_share_their_walks() -> None:
    first, second = layer_walks([("h", "v"), ("v", "w2")], "local", (4, 4))
    assert first[1] is second[0]
    with pytest.raises(ModelError, match="direction 'x7' is not known"):
        layer_walks([("x7",)], "local", (4, 4))


# ---- mixers: sequences made, scanned and put back one by one, as upstream does it


def plain_scan(u: Tensor, x_proj: Tensor, dt_weight: Tensor, A_log: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """(B, S, E) in the order of the steps -> the same."""
    rank = dt_weight.shape[1]
    states = A_log.shape[1]
    dt, B, C = F.linear(u, x_proj)[:, :, None].split([rank, states, states], dim=-1)
    order = torch.arange(u.shape[1], dtype=torch.int32)[None]
    return selective_scan_reference(
        u[:, :, None], F.linear(dt, dt_weight), -A_log.exp()[None], B, C, D[None], bias[None], order
    )


def plain_sum(results: list[Tensor], attn: nn.Module, weights: Tensor | None) -> Tensor:
    gated = []
    for y in results:
        mean = F.layer_norm(y, y.shape[-1:], attn.norm.weight, attn.norm.bias).mean(1, keepdim=True)
        gated.append(y * torch.sigmoid(attn.channel_select(F.gelu(attn.global_reduce(mean)))))
    if weights is None:
        return torch.stack(gated).sum(0)
    normed = torch.stack([F.layer_norm(y, y.shape[-1:]) for y in gated])
    return (normed * weights.softmax(0)).sum(0)


def plain_mixer(mixer: Any, x: Tensor, size: tuple[int, int], directions: tuple[str, ...], cls: int | None) -> Tensor:
    xz = mixer.in_proj(x)
    results = []
    for k, direction in enumerate(directions):
        scan, back = plain_walk(direction, *size)
        patches = xz if cls is None else torch.cat([xz[:, :cls], xz[:, cls + 1 :]], dim=1)
        steps = F.pad(patches, (0, 0, 0, 1))[:, scan]  # index -1 is the zero row
        if cls is not None:
            steps = torch.cat([steps[:, :cls], xz[:, cls : cls + 1], steps[:, cls:]], dim=1)
        u, z = steps.chunk(2, dim=-1)
        conv = getattr(mixer, f"conv1d_{k}")
        u = F.conv1d(F.pad(u.transpose(1, 2), (3, 0)), conv.weight, conv.bias, groups=u.shape[2]).transpose(1, 2)
        names = ("x_proj_{}.weight", "dt_proj_{}.weight", "A_log_{}", "D_{}", "dt_proj_{}.bias")
        y = plain_scan(F.silu(u), *(mixer.get_parameter(name.format(k)) for name in names)) * F.silu(z)
        if cls is None:
            results.append(y[:, back])
        else:
            kept = torch.cat([y[:, :cls], y[:, cls + 1 :]], dim=1)[:, back]
            results.append(torch.cat([kept[:, :cls], y[:, cls : cls + 1], kept[:, cls:]], dim=1))
    return mixer.out_proj(plain_sum(results, mixer.attn, mixer.multi_scan.weights))


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (3, 6)])
def test_local_vim_mixer(size: tuple[int, int], with_cls: bool, search: bool) -> None:
    directions = ALL_DIRECTIONS if search else ("v", "h_flip", "w2", "w2_flip", "w7", "v_flip")
    torch.manual_seed(0)
    mixer = randomise(LocalMixer(16, len(directions), search))
    cls = size[0] * size[1] // 2 if with_cls else None
    x = torch.randn(2, size[0] * size[1] + with_cls, 16, dtype=torch.float64)
    walks = [local_walk(name, size) for name in directions]
    if cls is not None:
        walks = [walk.with_cls(cls) for walk in walks]
    expected = plain_mixer(mixer, x, size, directions, cls)
    torch.testing.assert_close(mixer(x, walks), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_local_vmamba_scan(size: tuple[int, int], search: bool) -> None:
    directions = ALL_DIRECTIONS if search else ("v", "h_flip", "w2", "w2_flip", "w7", "v_flip")
    torch.manual_seed(0)
    op: Any = randomise(LocalSS2D(8, len(directions), search))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    u, z = op.in_proj(x).chunk(2, dim=-1)
    u = F.silu(op.conv2d(u.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
    results = []
    for k, direction in enumerate(directions):
        scan, back = plain_walk(direction, *size)
        inner = slice(16 * k, 16 * (k + 1))
        y = plain_scan(
            F.pad(u, (0, 0, 0, 1))[:, scan],
            op.x_proj_weight[k],
            op.dt_projs_weight[k],
            op.A_logs[inner],
            op.Ds[inner],
            op.dt_projs_bias[k],
        )
        results.append(y[:, back])
    total = plain_sum(results, op.multi_scan.attn, op.multi_scan.weights).unflatten(1, size)
    expected = op.out_proj(op.out_norm(total) * F.silu(z))
    torch.testing.assert_close(op(x, [local_walk(name, size) for name in directions]), expected, rtol=0, atol=1e-11)


def test_directions_keep_parameters_of_their_own() -> None:
    mixer = LocalMixer(16, 4)
    storages = {mixer.get_parameter(f"A_log_{k}").untyped_storage().data_ptr() for k in range(4)}
    assert len(storages) == 4


# ---- models


def test_positions_and_rotations_are_resized_to_the_picture() -> None:
    model = small("local_vim_t").eval()
    assert isinstance(model, LocalVim)
    assert model.pos_embed is not None
    assert model.rope is not None
    x = picture(30, 45)  # 8 x 12 patches, with padding at the bottom and on the right
    padded = F.pad(x, (0, 3, 0, 2))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(padded), rtol=0, atol=0)
        features, maps = model.forward_intermediates(x)
        assert features.shape == (2, 96, 16)
        assert [tuple(y.shape) for y in maps] == [(2, 16, 8, 12)] * 2
        cos, sin = model.rope.tables((8, 12))
        torch.testing.assert_close(cos, resize_grid(model.rope.freqs_cos[None], (8, 8), (8, 12))[0])
        torch.testing.assert_close(sin, resize_grid(model.rope.freqs_sin[None], (8, 8), (8, 12))[0])
        own = model.rope.tables((8, 8))
    assert own[0] is not cos
    torch.testing.assert_close(own[0], model.rope.freqs_cos, rtol=0, atol=0)


def test_rotation_of_a_grid_that_is_not_square() -> None:
    wide, square = AxialRotation(8, (2, 4)), AxialRotation(8, 4)
    tokens = torch.randn(1, 8, 8)
    turned = wide(tokens)
    torch.testing.assert_close(turned.square().sum(), tokens.square().sum())
    # The second half of the channels turns by the column, of four in both.
    torch.testing.assert_close(wide.freqs_cos[:, 4:], square.freqs_cos[:8, 4:])
    assert not torch.equal(wide.freqs_cos[:, :4], square.freqs_cos[:8, :4])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_any_size_and_any_order(name: str) -> None:
    model = small(name).eval()
    with torch.inference_mode():
        assert model(picture(32, 48)).shape == (2, 3)
        if name.endswith("search"):
            with pytest.raises(ModelError, match="this model's layers need 8"):
                small(name, scan="column")
            return
        other = small(name, scan="column").eval()
        other.load_state_dict(model.state_dict())
        y, z = model(picture(32, 48)), other(picture(32, 48))
    assert z.shape == y.shape
    assert not torch.allclose(y, z)
    with pytest.raises(ScanArgumentError, match="'colum' is not known; nearest: column"):
        small(name, scan="colum")


@pytest.mark.parametrize("name", ["local_vim_t", "local_vmamba_t"])
def test_the_order_raster_is_the_local_walk_of_rows(name: str) -> None:
    rows = (("h", "v", "h_flip", "v_flip"),) * 2  # what "raster" extends to, on a square map
    model, other = small(name, directions=rows).eval(), small(name, scan="raster").eval()
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(picture(32, 32)), model(picture(32, 32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("local_vim_t", {"depth": 3}, "directions are of 2 layers, the model has 3"),
        ("local_vim_t", {"directions": (("h", "w0"), ("h", "h"))}, "direction 'w0' is not known"),
        ("local_vim_t", {"directions": (("h",), ())}, "needs at least one"),
        ("local_vim_t", {"cls_token": "middle"}, "no row for a class token"),
        ("local_vim_t", {"embed_dim": 18}, "multiple of 4"),
        ("local_vim_t", {"img_size": 3}, "smaller than a patch"),
        ("local_vim_t", {"pool": "max"}, "pool is 'max'"),
        ("local_vmamba_t", {"depths": (2, 1)}, "directions are of 2 layers, the model has 3"),
        ("local_vmamba_t", {"depths": (1, 1, 1)}, "not of the same stages"),
        ("local_vmamba_t", {"img_size": 3}, "smaller than a patch"),
    ],
)
def test_options_that_make_no_model_are_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small(name, **options)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "cls is None"),
        ({"cls": "VSSM"}, "cls is 'VSSM'; one of local_vim.VisionMamba, local_vmamba.VSSM"),
        ({"cls": "local_vim.VisionMamba", "pt_hw_seq_len": 16}, "pt_hw_seq_len=16"),
        ({"cls": "local_vim.VisionMamba", "if_cls_token": True}, "with use_middle_cls_token only"),
        ({"cls": "local_vim.VisionMamba", "if_telepathic": True}, "not supported: if_telepathic"),
        ({"cls": "local_vmamba.VSSM", "ssm_act_layer": "gelu"}, "ssm_act_layer='gelu'"),
        ({"cls": "local_vmamba.VSSM", "norm_layer": "bn"}, "norm_layer='bn'"),
    ],
)
def test_upstream_flags_that_are_not_supported_are_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        model_from_upstream_config("local_mamba", config)


def test_upstream_flags_of_a_supernet() -> None:
    vim = {"cls": "local_vim.VisionMamba", "embed_dim": 16, "depth": 2, "rms_norm": True, "if_abs_pos_embed": True}
    vim |= {"bimamba_type": "none"}
    for directions in ({}, {"directions": None}, {"directions": [None, None]}):
        config = model_from_upstream_config("local_mamba", vim | directions).config
        assert isinstance(config, LocalVimConfig)
        assert (config.directions, config.rope, config.pool, config.norm) == (None, False, "last", "rms")
    vmamba = {"cls": "local_vmamba.VSSM", "dims": 8, "depths": [1, 1], "d_state": 5, "ssm_d_state": 4}
    vmamba |= {"mlp_ratio": 4.0, "norm_layer": "LN"}  # it takes the first, and has no MLPs
    config = model_from_upstream_config("local_mamba", vmamba).config
    assert isinstance(config, LocalVMambaConfig)
    assert (config.dims, config.directions, config.d_state) == ((8, 16), None, 4)


# ---- tracing


@pytest.mark.parametrize("name", sorted(SMALL))
def test_exported_with_symbolic_batch(name: str) -> None:
    model = small(name).eval()
    program = export(model, (picture(32, 32),), dynamic_shapes=({0: Dim.DYNAMIC},))
    x = picture(32, 32, batch=3)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["local_vim_t", "local_vim_t_midcls", "local_vmamba_t"])
def test_exported_with_symbolic_sizes(name: str) -> None:
    model = small(name).eval()
    sides = {2: Dim("height", min=16, max=512), 3: Dim("width", min=16, max=512)}
    program = export(model, (picture(32, 40),), dynamic_shapes=(sides,))
    for size in ((33, 47), (32, 32), (28, 40)):
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(picture(*size)), model(picture(*size)), rtol=1e-5, atol=1e-6)
