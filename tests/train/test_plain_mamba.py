"""PlainMamba: its walks, its mixer beside a literal reading of the official one, its options and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.models.plain_mamba import PlainMamba, PlainMambaConfig, config_from_upstream
from edgemamba.train.models.plain_mamba_mixer import DOWN, LEFT, RIGHT, START, UP, PlainMambaMixer, moves, walks
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.registry import model_entry
from edgemamba.train.scan_orders import scan_order

SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_classes": 5, "drop_path_rate": 0.0}


def small(**options: Any) -> PlainMamba:
    torch.manual_seed(0)
    model = create_model("plain_mamba_l1", **(SMALL | options))
    assert isinstance(model, PlainMamba)
    return model


def picture(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- walks


def test_walks_of_a_small_map() -> None:
    around = walks("snake", (2, 3))
    assert around.order.tolist() == [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0], [0, 3, 4, 1, 2, 5], [5, 2, 1, 4, 3, 0]]
    assert moves(around.order, 3).tolist() == [
        [START, RIGHT, RIGHT, DOWN, LEFT, LEFT],
        [START, RIGHT, RIGHT, UP, LEFT, LEFT],
        [START, DOWN, RIGHT, UP, RIGHT, DOWN],
        [START, UP, LEFT, DOWN, LEFT, UP],
    ]
    for walk, order in enumerate(around.order.tolist()):
        steps = around.steps.view(6, 4)[:, walk].tolist()
        assert [order[step] for step in steps] == list(range(6))


def test_walks_equal_upstream(golden: Path) -> None:
    path = golden / "ops" / "op_plain_scan_orders.json"
    if not path.is_file():
        pytest.skip(f"{path} is not in this folder")
    for name, grid in json.loads(path.read_text())["grids"].items():
        height, width = map(int, name.split("x"))
        around = walks("snake", (height, width))
        assert around.order.tolist() == grid["orders"], name
        assert around.steps.view(-1, 4).t().tolist() == grid["inverse"], name
        assert moves(around.order, width).tolist() == grid["directions"], name


def test_a_jump_counts_as_a_move_along_its_longer_side() -> None:
    # A map of 3 rows and 4 columns; from each position to the next:
    walk = torch.tensor([[0, 2, 10, 9, 1, 6, 3, 8]], dtype=torch.int32)
    assert moves(walk, 4).tolist() == [[START, RIGHT, DOWN, LEFT, UP, RIGHT, RIGHT, LEFT]]


@pytest.mark.parametrize("name", ["raster", "cross", "snake"])
@pytest.mark.parametrize("size", [(3, 4), (1, 3), (1, 1)])
def test_the_mixer_equals_a_literal_reading(name: str, size: tuple[int, int]) -> None:
    """Values permuted alone, the bias of the step size added twice, results put back and summed."""
    torch.manual_seed(0)
    mixer = PlainMambaMixer(8, d_state=4).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    positions = size[0] * size[1]

    value, gate = mixer.in_proj(x).chunk(2, dim=-1)
    u = F.silu(mixer.conv2d(value.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
    dt, B, C = mixer.x_proj(u).split([mixer.dt_rank, 4, 4], dim=-1)
    delta = mixer.dt_proj(dt)
    raster = torch.arange(positions, dtype=torch.int32)[None]
    order = scan_order(name, size, directions=4)
    y = torch.zeros_like(u)
    for walk, arrived in zip(order.long(), moves(order, size[1]), strict=True):
        arguments = (u[:, walk], delta, B + mixer.direction_Bs[arrived], C)
        u_d, delta_d, B_d, C_d = (tensor[:, :, None] for tensor in arguments)
        A, D, bias = -mixer.A_log.exp()[None], mixer.D[None], mixer.dt_proj.bias[None]
        y[:, walk] += selective_scan_reference(u_d, delta_d, A, B_d, C_d, D, bias, raster)
    expected = mixer.out_proj(y.view(2, *size, -1) * F.silu(gate))

    torch.testing.assert_close(mixer(x, walks(name, size)), expected, rtol=0, atol=1e-12)


# ---- the model


def test_every_parameter_gets_a_gradient() -> None:
    model = small(depth=4).train()
    F.cross_entropy(model(picture()), torch.tensor([1, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    assert all((layer.mamba.direction_Bs.grad.abs().amax(1) > 0).all() for layer in model.backbone.layers)


def test_gradient_checkpointing_changes_nothing() -> None:
    def gradients(enable: bool) -> list[Tensor]:
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(picture()).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_maps_are_those_of_feature_info() -> None:
    model = small(depth=4, dwconv_layers=(1,)).eval()
    maps: list[Tensor] = []
    with torch.inference_mode():
        features = model.forward_features(picture(2, 64, 90), maps)
        last = model.backbone.ln1(maps[-1].permute(0, 2, 3, 1))
    assert [info["module"] for info in model.feature_info] == [f"backbone.layers.{i}" for i in range(4)]
    for y, info in zip(maps, model.feature_info, strict=True):
        assert y.shape == (2, info["num_chs"], 64 // info["reduction"], -(-90 // info["reduction"]))
    torch.testing.assert_close(last, features)


def test_a_classifier_is_replaced_under_its_key() -> None:
    model = small()
    model.reset_classifier(7)
    assert model.state_dict()["head.fc.weight"].shape == (7, 16)
    assert model(picture()).shape == (2, 7)
    model.reset_classifier(0)
    assert model(picture()).shape == (2, 16)
    assert "direction_Bs" in {name.rpartition(".")[2] for name in model.no_weight_decay()}


def test_a_size_that_patches_do_not_divide_is_padded_with_zeros_after_the_stem() -> None:
    embed = small().eval().backbone.patch_embed
    x = picture(1, 50, 71)
    with torch.inference_mode():
        inside = embed.convs(embed.stem(x))
        assert inside.shape[2:] == (25, 36)
        padded = F.pad(inside, (0, 4, 0, 7))
        torch.testing.assert_close(embed(x).permute(0, 3, 1, 2), embed.projection(padded))


@pytest.mark.parametrize("scan", ["raster", "column", "cross", "hilbert", "window2", "atrous2"])
def test_other_orders_run_and_matter(scan: str) -> None:
    model, snake = small(scan=scan).eval(), small().eval()
    with torch.inference_mode():
        for parameter in snake.parameters():  # fresh projections are so small that the scans hardly show
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.load_state_dict(snake.state_dict())
        y = model(picture(1, 48, 80))
        assert y.isfinite().all()
        assert not torch.allclose(y, snake(picture(1, 48, 80)), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch_size": 15}, "patch_size is 15; an even number"),
        ({"d_conv": 4}, "d_conv is 4; an odd number"),
        ({"dt_rank": 0}, "dt_rank is 0"),
        ({"dwconv_layers": (3,)}, r"dwconv_layers \(3,\) are not all among the layers 0 to 2"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small(**options)


def test_orders_that_make_no_model_are_refused() -> None:
    with pytest.raises(ScanArgumentError, match="'snak' is not known; nearest: snake"):
        small(scan="snak")
    with pytest.raises(ModelError, match="has 2 direction"):
        small(scan="bidirectional")


# ---- upstream


def test_named_architectures_are_the_registered_ones() -> None:
    for arch in ("L1", "L2", "L3"):
        registered = model_entry(f"PlainMamba-{arch}").config
        config = {"type": "PlainMamba", "arch": arch, "drop_path_rate": registered.drop_path_rate}
        # What upstream takes beside a name, and does not read; or what says the same as is said by silence.
        config |= {"num_layers": 1, "layers_with_dwconv": [], "layer_cfgs": {"mamba_cfg": {"bias": False}}}
        config |= {"with_pos_embed": True, "out_indices": -1, "norm_cfg": {"type": "LN", "eps": 1e-6}, "test_cfg": {}}
        assert config_from_upstream({"backbone": config, "head": {"in_channels": registered.embed_dim}}) == registered


def test_upstream_flags_change_the_configuration() -> None:
    mixer = {"d_state": 8, "expand": 3, "conv_size": 3, "conv_bias": False, "bias": False, "dt_rank": "auto"}
    backbone = {"embed_dims": 16, "num_layers": 2, "layer_cfgs": {"use_rms_norm": False, "mamba_cfg": mixer}}
    config = config_from_upstream({"backbone": backbone, "head": {"num_classes": 3}})
    assert config == PlainMambaConfig(
        embed_dim=16,
        depth=2,
        dwconv_layers=(),
        d_state=8,
        expand=3,
        d_conv=3,
        conv_bias=False,
        bias=False,
        num_classes=3,
        drop_path_rate=0.0,
    )
    left_out = config_from_upstream({"backbone": {}})
    assert (left_out.depth, left_out.bias, left_out.conv_bias, left_out.dwconv_layers) == (20, False, True, ())
    keys = PlainMamba(config).state_dict().keys()
    assert not any(key.endswith(("in_proj.bias", "out_proj.bias", "conv2d.bias")) for key in keys)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"backbone": {"layer_cfgs": {"use_rms_norm": True}}}, "use_rms_norm=True"),
        ({"backbone": {"type": "SwinTransformer"}}, "backbone.type='SwinTransformer'"),
        ({"backbone": {"arch": "L4"}}, "arch='L4'"),
        ({"backbone": {"telepathic": 1}}, "not supported: telepathic"),
        ({"backbone": {"final_norm": False}}, "backbone.final_norm=False"),
        ({"backbone": {"layer_cfgs": {"mamba_cfg": {"init_layer_scale": 0.1}}}}, "init_layer_scale=0.1"),
        ({"backbone": {"layer_cfgs": {"mamba_cfg": {"headdim": 64}}}}, "not supported: headdim"),
        ({"neck": {"type": "GlobalAveragePooling"}}, "neck.type='GlobalAveragePooling'"),
        ({"head": {"in_channels": 384}}, "head.in_channels=384"),
    ],
)
def test_upstream_flags_that_are_not_supported_are_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        config_from_upstream(config)


def test_a_released_checkpoint_loads_without_the_averaging_hook_s_buffers(tmp_path: Path) -> None:
    source = small()
    state = source.state_dict()
    raw = {f"ema_{key.replace('.', '_')}": torch.full_like(value, 7) for key, value in state.items()}
    torch.save({"meta": {"epoch": 300}, "state_dict": state | raw}, tmp_path / "l2.pth")
    torch.manual_seed(1)
    model = create_model("plain_mamba_l1", **SMALL)
    load_checkpoint(model, tmp_path / "l2.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


# ---- tracing


def test_exports_with_dynamic_batch() -> None:
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (picture(2),), dynamic_shapes={"x": {0: batch}})
    scans = [node for node in program.graph.nodes if node.target is torch.ops.edgemamba.selective_scan.default]
    assert len(scans) == len(model.backbone.layers)
    with torch.inference_mode():
        for count in (1, 3):
            torch.testing.assert_close(program.module()(picture(count)), model(picture(count)))


@pytest.mark.parametrize("scan", ["snake", "atrous2"])
def test_exports_with_dynamic_size(scan: str) -> None:
    model = small(scan=scan).eval()
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (picture(1, 64, 96),), dynamic_shapes={"x": sides})
    with torch.inference_mode():
        for height, width in ((64, 64), (80, 48), (92, 71)):
            x = picture(1, height, width)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
