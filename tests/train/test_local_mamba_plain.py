"""LocalMamba's walks, mixers and LocalVim as a whole, against a plain reading of the architecture notes.

Sequences are made, scanned and put back one by one, as upstream does it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.train import create_model
from edgemamba.train.models.local_directions import ALL_DIRECTIONS
from edgemamba.train.models.local_scan import Walk, layer_walks, local_walk, order_walk
from edgemamba.train.models.local_vim_mixer import LocalMixer
from edgemamba.train.models.local_vmamba import LocalSS2D
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.scan_orders import scan_order


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


# ---- mixers


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


# ---- the network


def plain_local_vim(model: Any, x: Tensor) -> Tensor:
    """The network without a class token, step by step as the notes have it."""

    def resized(table: Tensor) -> Tensor:
        square = table.reshape(8, 8, -1).permute(2, 0, 1)[None]
        return F.interpolate(square, size, mode="bicubic")[0].flatten(1).t()

    def rotated(tokens: Tensor) -> Tensor:
        a, b = tokens[..., 0::2], tokens[..., 1::2]
        return tokens * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin

    def normed(tokens: Tensor, weight: Tensor) -> Tensor:
        return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    patches = F.conv2d(
        F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)), *model.patch_embed.proj.parameters(), stride=4
    )
    size = (patches.shape[2], patches.shape[3])
    cos, sin = resized(model.rope.freqs_cos), resized(model.rope.freqs_sin)
    hidden, residual = patches.flatten(2).transpose(1, 2) + resized(model.pos_embed[0]), torch.zeros(())
    for i, (layer, directions) in enumerate(zip(model.layers, model.config.layers, strict=True)):
        hidden, residual = rotated(hidden), rotated(residual) if i else residual
        residual = residual + hidden
        hidden = plain_mixer(layer.mixer, normed(residual, layer.norm.weight), size, directions, None)
    return model.head(normed(residual + hidden, model.norm_f.weight).mean(1))


@pytest.mark.parametrize("name", ["local_vim_t", "local_vim_t_search"])
@pytest.mark.parametrize("size", [(30, 45), (27, 17)])
def test_local_vim_of_another_size_is_its_description(name: str, size: tuple[int, int]) -> None:
    layers = (("h", "v_flip", "w3", "w3_flip"), ("h_flip", "v", "w2", "w5"))
    options = {} if name.endswith("search") else {"directions": layers}
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, img_size=32, patch_size=4, embed_dim=16, depth=2, **options)
    randomise(model).eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain_local_vim(model, x), rtol=0, atol=1e-10)
