"""MambaVision: what the golden cases do not show: windows, the mixer by its formula, upstream's flags, export, training, dense form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train import create_model, list_models
from edgemamba.train.models.mambavision import (
    MambaVision,
    MambaVisionConfig,
    WindowStage,
    config_from_upstream,
    rename_checkpoint_keys,
)
from edgemamba.train.models.mambavision_blocks import Attention, MambaVisionMixer
from edgemamba.train.models.windows import from_windows, to_windows
from edgemamba.train.registry import families, model_entry
from edgemamba.train.scan_orders import scan_order

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "dim": 8,
    "in_dim": 6,
    "depths": (1, 1, 3, 2),
    "num_heads": (1, 1, 2, 4),
    "window_size": (8, 8, 4, 2),
    "layer_scale": 0.5,
    "drop_path_rate": 0.0,
}


def small(**options: Any) -> MambaVision:
    torch.manual_seed(0)
    model = create_model("mambavision_t", **(SMALL | options))
    assert isinstance(model, MambaVision)
    return model


def spread(model: nn.Module) -> None:
    """Weights as of a trained model: a fresh one's step sizes, norms and biases are all alike."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def picture(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- windows


@pytest.mark.parametrize(("height", "width", "window"), [(6, 9, 3), (7, 8, 3), (2, 3, 5), (4, 4, 4), (1, 5, 1)])
def test_windows_are_pieces_of_the_padded_map(height: int, width: int, window: int) -> None:
    x = torch.randn(2, height, width, 3)
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    pieces = [
        picture[top : top + window, left : left + window].reshape(window * window, 3)
        for picture in padded
        for top in range(0, padded.shape[1], window)
        for left in range(0, padded.shape[2], window)
    ]
    windows = to_windows(x, window)
    assert torch.equal(windows, torch.stack(pieces))
    assert torch.equal(from_windows(windows, window, height, width), x)


def test_a_window_that_is_the_map_is_not_copied() -> None:
    x = torch.randn(2, 4, 4, 3)
    windows = to_windows(x, 4)
    assert windows.data_ptr() == x.data_ptr()
    assert from_windows(windows, 4, 4, 4).data_ptr() == x.data_ptr()


def test_windows_know_nothing_of_each_other() -> None:
    stage = small().eval().levels[2]
    assert isinstance(stage, WindowStage)
    spread(stage)
    stage.downsample = nn.Identity()
    x = torch.randn(2, 32, 8, 12)
    with torch.inference_mode():
        whole = stage(x)
        for top in (0, 4):
            for left in (0, 4, 8):
                alone = stage(x[:, :, top : top + 4, left : left + 4])
                torch.testing.assert_close(whole[:, :, top : top + 4, left : left + 4], alone)


def test_padding_takes_part_and_is_cut_off_once() -> None:
    stage = small().eval().levels[2]
    spread(stage)
    stage.downsample = nn.Identity()
    x = torch.randn(2, 32, 3, 4)
    with torch.inference_mode():
        padded = stage(F.pad(x, (0, 0, 0, 1)))
        torch.testing.assert_close(stage(x), padded[:, :, :3])
        assert padded[:, :, 3].abs().max() > 0.1  # tokens like the others: the norms' biases make something of them


# ---- mixers


def mixed(mixer: MambaVisionMixer, tokens: Tensor) -> Tensor:
    """One sequence (L, C) through the mixer, by the description's formulas and step by step."""
    x, z = (tokens @ mixer.in_proj.weight.T).chunk(2, dim=1)
    length = len(tokens)

    def convolved(y: Tensor, weight: Tensor) -> Tensor:
        around = torch.cat([torch.zeros_like(y[:1]), y, torch.zeros_like(y[:1])])
        return F.silu(sum(around[k : k + length] * weight[:, 0, k] for k in range(3)))

    x, z = convolved(x, mixer.conv1d_x.weight), convolved(z, mixer.conv1d_z.weight)
    dt, B, C = (x @ mixer.x_proj.weight.T).split([mixer.dt_rank, 8, 8], dim=1)
    projected = dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias
    delta = F.softplus(projected + mixer.dt_proj.bias)  # upstream's scan adds it once more
    state, ys = torch.zeros(x.shape[1], 8, dtype=x.dtype), []
    for t in range(length):
        decay = torch.exp(-delta[t, :, None] * mixer.A_log.exp())
        state = decay * state + (delta[t] * x[t])[:, None] * B[t]
        ys.append(state @ C[t] + mixer.D * x[t])
    return torch.cat([torch.stack(ys), z], dim=1) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("dim", [16, 40])  # of ranks 1 and 3
def test_the_mixer_is_its_formula(dim: int) -> None:
    torch.manual_seed(0)
    mixer = MambaVisionMixer(dim).double()
    spread(mixer)
    tokens = torch.randn(2, 9, dim, dtype=torch.float64)
    with torch.inference_mode():
        y = mixer(tokens, scan_order("raster", (3, 3)))
        expected = torch.stack([mixed(mixer, sequence) for sequence in tokens])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_attention_does_not_depend_on_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, qkv_bias=True, qk_norm=True, attn_drop=0.5, drop=0.0).eval()
    spread(attention)
    x, shuffled, order = torch.randn(2, 9, 16), torch.randperm(9), scan_order("raster", (3, 3))
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, order)[:, shuffled], attention(x[:, shuffled], order))


def test_attention_drops_weights_in_training_alone() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, qkv_bias=True, qk_norm=False, attn_drop=0.5, drop=0.0)
    x, order = torch.randn(2, 9, 16), scan_order("raster", (3, 3))
    with torch.inference_mode():
        assert not torch.equal(attention(x, order), attention(x, order))
        attention.eval()
        assert torch.equal(attention(x, order), attention(x, order))


@pytest.mark.parametrize(("depth", "scans"), [(1, 1), (2, 1), (5, 3), (7, 4), (8, 4)])
def test_the_first_half_of_a_stage_scans_rounded_up(depth: int, scans: int) -> None:
    blocks = small(depths=(1, 1, depth, 1)).levels[2].blocks
    assert [isinstance(block.mixer, MambaVisionMixer) for block in blocks] == [j < scans for j in range(depth)]


# ---- upstream's flags and names


def test_flags_of_upstream_become_ours() -> None:
    flags = {"dim": 8, "in_dim": 6, "depths": [1, 1, 4, 2], "num_heads": [1, 2, 4, 8], "window_size": [8, 8, 14, 7]}
    inert = {"mlp_ratio": 4, "resolution": 224, "img_size": [224, 224], "cls": "MambaVision classification"}
    config = config_from_upstream(flags | inert)
    assert (config.dims, config.depths, config.num_classes) == ((8, 16, 32, 64), (1, 1, 4, 2), 1000)
    assert (config.layer_scale, config.layer_scale_conv, config.qk_norm, config.out_indices) == (None, None, False, ())
    branches = {"layer_scale": 1, "layer_scale_conv": 0.5, "qk_scale": 0.125, "qkv_bias": False}
    config = config_from_upstream(flags | branches)
    assert (config.layer_scale, config.layer_scale_conv, config.qk_norm, config.qkv_bias) == (1, 0.5, True, False)
    assert config_from_upstream(flags | {"layer_scale": "1e-5"}).layer_scale is None  # of numbers alone


def test_flags_of_upstreams_dense_class_become_ours() -> None:
    config = config_from_upstream({"cls": "MM_mamba_vision", "drop_path_rate": 0.5, "pretrained": None})
    assert (config.out_indices, config.out_norm, config.drop_path_rate) == ((0, 1, 2, 3), "layer", 0.2)
    config = config_from_upstream({"cls": "MM_mamba_vision", "norm_layer": "bn", "out_indices": [1, 3]})
    assert (config.out_indices, config.out_norm) == ((1, 3), "batch")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"telepathy": True}, "upstream flags that are not supported: telepathy"),
        ({"cls": "FasterViT"}, "upstream's cls='FasterViT' is not supported"),
        ({"cls": "MM_mamba_vision", "norm_layer": "ln"}, "upstream's norm_layer='ln' is not supported"),
    ],
)
def test_flags_that_are_not_supported_are_named(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=f"mambavision: {text}"):
        config_from_upstream(flags)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depths": (1, 1, 2)}, "depths is .*4 positive numbers"),
        ({"window_size": (8, 8, 0, 7)}, "window_size is .*4 positive numbers"),
        ({"num_heads": (1, 1, 5, 4)}, "the 32 channels of stage 2 do not divide by 5 heads"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"out_norm": "group"}, "out_norm is 'group'; one of 'layer', 'batch'"),
        ({"out_indices": (0, 4)}, "not different stages of 0 to 3"),
        ({"out_indices": (1, 1)}, "not different stages"),
        ({"scan": "cross"}, "scan 'cross' is not one walk over a window"),
        ({"scan": "inter-slice"}, "scan 'inter-slice' is not one walk over a window"),
        ({"scan": "window3"}, r"scan 'window3' takes windows of multiples of 3; window_size is \(8, 8, 4, 2\)"),
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small(**options)


def test_recognises_its_own_variants_and_no_others(golden: Path) -> None:
    files = sorted((golden / "keys").glob("*.json"))
    assert files
    recognise = families()["mambavision"].recognise
    for path in files:
        content = json.loads(path.read_text())
        keys = content.get("state_dict", content.get("keys", {}))
        if isinstance(keys, dict) and keys:
            assert recognise(keys) == path.stem.startswith("mambavision"), path.stem
    assert recognise(small().state_dict())
    assert recognise(small(out_indices=(2,)).state_dict())


@pytest.mark.parametrize("name", ["g", "weight"])
def test_other_names_of_the_branches_scales(name: str) -> None:
    state = small(layer_scale_conv=0.5).state_dict()
    renamed = {key.replace("gamma_", f"{name}_"): value for key, value in state.items()}
    assert sum(key not in state for key in renamed) == 2 * (3 + 2)
    assert rename_checkpoint_keys(renamed) == state
    assert rename_checkpoint_keys(state) == state


# ---- the models


def test_variants_and_their_upstream_names() -> None:
    sizes = ("b", "b_21k", "l", "l2", "l2_512_21k", "l3_256_21k", "l3_512_21k", "l_21k", "s", "t", "t2")
    assert list_models("mambavision*") == [f"mambavision_{size}" for size in sizes]
    assert model_entry("mamba_vision_T").config == MambaVisionConfig()
    for name in list_models("mambavision*"):
        entry = model_entry(name)
        height, width = entry.config.img_size
        assert (height, width) == entry.preprocessing.size
        # One window is the whole map at the published size.
        assert entry.config.window_size[2:] == (height // 16, width // 32)
    large = model_entry("mamba_vision_L3_512_21k")
    assert (large.preprocessing.resize, large.preprocessing.crop_pct, large.top1) == ("squash_crop", 0.93, 88.1)


@pytest.mark.parametrize("options", [{}, {"layer_scale": None, "layer_scale_conv": 0.5, "qk_norm": True}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    # In evaluation mode, because batch norms in training take the gradients of the biases before them away.
    model = small(**options).eval()
    spread(model)
    F.cross_entropy(model(picture(2, 60, 84)), torch.tensor([1, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_gradient_checkpointing_changes_nothing() -> None:
    def gradients(enable: bool) -> list[Tensor]:
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(picture()).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_stochastic_depth_grows_and_drops_windows() -> None:
    model = small(drop_path_rate=0.3)
    rates = [block.drop_path.rate for level in model.levels for block in level.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])
    stage = small(drop_path_rate=0.9, layer_scale=None).train().levels[3]
    x = torch.randn(4, 64, 8, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        kept = (to_windows((stage(x) == x).permute(0, 2, 3, 1), 2)).all(-1).all(-1)
    assert kept.any()  # windows of which no branch of no block was kept
    assert not kept.all()
    assert not kept.view(4, -1).all(1).any()  # and not whole pictures


@pytest.mark.parametrize("scan", ["reverse", "column", "hilbert", "window2"])
def test_another_scan_order(scan: str) -> None:
    own, other = small().eval(), small(scan=scan).eval()
    spread(own)
    other.load_state_dict(own.state_dict())
    with torch.inference_mode():
        assert (other(picture(2, 60, 84)) - own(picture(2, 60, 84))).abs().max() > 1e-3


def test_a_scan_order_that_there_is_not_is_refused() -> None:
    with pytest.raises(ScanArgumentError, match="'rastr' is not known; nearest: raster"):
        small(scan="rastr")


def test_maps_are_as_described() -> None:
    model = small().eval()
    maps: list[Tensor] = []
    with torch.inference_mode():
        features = model.forward_features(picture(2, 60, 84), maps)  # sides are rounded up
        torch.testing.assert_close(features, model.norm(maps[-1]))
    assert [tuple(y.shape) for y in maps] == [(2, 8, 15, 21), (2, 16, 8, 11), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert [(info["num_chs"], info["reduction"]) for info in model.feature_info] == [
        (8, 4),
        (16, 8),
        (32, 16),
        (64, 32),
    ]


@pytest.mark.parametrize("out_norm", ["layer", "batch"])
def test_dense_form_returns_normed_maps(out_norm: str) -> None:
    plain, dense = small().eval(), small(out_indices=(2, 0), out_norm=out_norm).eval()
    own = dense.state_dict()
    assert {key.partition(".")[0] for key in own} == {"patch_embed", "levels", "outnorm0", "outnorm2"}
    assert set(dense.absent_paths()) == {"head", "norm"}
    dense.load_state_dict({key: value for key, value in plain.state_dict().items() if key in own}, strict=False)
    maps: list[Tensor] = []
    with torch.inference_mode():
        plain.forward_features(picture(2, 60, 84), maps)
        third, first = dense(picture(2, 60, 84))
    for y, x in ((third, maps[2]), (first, maps[0])):
        layer = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5).permute(0, 3, 1, 2)
        torch.testing.assert_close(y, layer if out_norm == "layer" else x / (1 + 1e-5) ** 0.5)


# ---- tracing


def test_exports_with_dynamic_batch_and_moves_nothing_at_the_published_size() -> None:
    model = small().eval()  # whose windows are the maps of 64 x 64 pixels, as those of the published models are
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(model, (picture(),), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("selective_scan" in target for target in targets) == 2 + 1
    assert not [target for target in targets if "pad" in target or "index_select" in target]
    assert sum("transpose" in target for target in targets) == 2  # of attention's heads
    with torch.inference_mode():
        for count in (1, 3):
            torch.testing.assert_close(program.module()(picture(count)), model(picture(count)))


@pytest.mark.parametrize("options", [{}, {"out_indices": (0, 2)}, {"window_size": (8, 8, 3, 3)}])
def test_exports_with_every_size_dynamic(options: dict[str, Any]) -> None:
    """Traced with one window to a map, and good for many, and for padding."""
    model = small(**options).eval()
    spread(model)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (picture(),), dynamic_shapes={"x": sizes}).module()
    with torch.inference_mode():
        for count, height, width in ((1, 64, 64), (3, 75, 101), (1, 33, 140), (2, 160, 48)):
            x = picture(count, height, width)
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
