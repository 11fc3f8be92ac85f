"""EfficientVMamba: what the golden cases do not show: the scan alone, padding, upstream's flags, export, training, dense form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import golden_folder
from safetensors.torch import load_file
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train import create_model, list_models
from edgemamba.train.models.attention_gate import BiAttention
from edgemamba.train.models.efficientvmamba import EfficientVMamba, EfficientVMambaConfig, config_from_upstream
from edgemamba.train.models.efficientvmamba_blocks import ConvStage
from edgemamba.train.models.es2d import ES2D
from edgemamba.train.models.padding import crop_map, pad_map, round_up
from edgemamba.train.models.ss2d import SS2D
from edgemamba.train.registry import families, model_entry
from edgemamba.train.scan_orders import scan_order

SMALL: dict[str, Any] = {"num_classes": 5, "dims": (8, 16, 12, 24), "depths": (1, 2, 2, 1), "drop_path_rate": 0.0}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "op" in metafunc.fixturenames:
        files = sorted((golden_folder(metafunc.config) / "ops").glob("op_efficientvmamba_es2d_*.safetensors"))
        metafunc.parametrize("op", files, ids=[path.stem for path in files])


def small(**options: Any) -> EfficientVMamba:
    torch.manual_seed(0)
    model = create_model("efficientvmamba_t", **(SMALL | options))
    assert isinstance(model, EfficientVMamba)
    return model


def picture(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def spread(model: nn.Module) -> None:
    """Weights that are not nearly alike for all directions, as a fresh model's are."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


# ---- parts


@pytest.mark.parametrize("quarter", [True, False])
def test_the_atrous_scan_equals_upstream(op: Path, quarter: bool) -> None:
    sidecar, tensors = json.loads(op.with_suffix(".json").read_text()), load_file(op)
    given = sidecar["config"]
    arguments = given["d_model"], given["d_state"], given["ssm_ratio"]
    module = (ES2D(*arguments) if quarter else SS2D(*arguments, multiple=2)).eval()
    module.load_state_dict({k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")})
    order = scan_order("atrous2", (round_up(sidecar["H"], 2), round_up(sidecar["W"], 2)))
    with torch.inference_mode():
        single = module(tensors["input"], order)
        double = module.double()(tensors["input"].double(), order)
    torch.testing.assert_close(double, tensors["output_fp64"], rtol=0, atol=1e-9)
    torch.testing.assert_close(single, tensors["output"], rtol=0, atol=max(1e-5, 10 * sidecar["max_abs_fp32_vs_fp64"]))


@pytest.mark.parametrize(
    ("size", "multiple", "padded"), [((5, 7), 2, (6, 8)), ((6, 7), 2, (6, 8)), ((1, 3), 7, (7, 7))]
)
def test_padding_is_below_and_on_the_right(size: tuple[int, int], multiple: int, padded: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    larger = pad_map(x, multiple)
    assert larger.shape == (2, *padded, 3)
    assert torch.equal(larger[:, : size[0], : size[1]], x)
    torch.testing.assert_close(larger.abs().sum(), x.abs().sum())
    assert torch.equal(crop_map(larger, *size), x)


def test_nothing_is_padded_where_nothing_is_missing() -> None:
    x = torch.randn(2, 6, 8, 3)
    assert pad_map(x, 2) is x
    assert pad_map(x, 1) is x
    assert crop_map(x, 6, 8) is x


@pytest.mark.parametrize("shape", [(2, 4, 5, 16), (2, 7, 16)])
def test_the_gate_is_of_normed_means_and_scales_what_came(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    attention = BiAttention(16)
    spread(attention)
    x = 3 * torch.randn(shape) + 1
    normed = F.layer_norm(x.flatten(1, -2), (16,), attention.norm.weight, attention.norm.bias, 1e-5)
    hidden = F.gelu(normed.mean(1) @ attention.global_reduce.weight.T + attention.global_reduce.bias)
    factors = torch.sigmoid(hidden @ attention.channel_select.weight.T + attention.channel_select.bias)
    assert hidden.shape == (2, 2)
    gate = attention.gate(x)
    assert gate.shape == (2, *(1,) * (len(shape) - 2), 16)
    torch.testing.assert_close(gate.flatten(1), factors)
    torch.testing.assert_close(attention(x), x * gate)


# ---- upstream's flags


def test_flags_of_upstream_become_ours() -> None:
    defaults = config_from_upstream({})
    assert (defaults.dims, defaults.depths) == ((96, 192, 384, 768), (2, 2, 9, 2))
    assert (defaults.mlp_ratio, defaults.downsample, defaults.out_indices) == (4.0, "conv2", ())
    flags = {"dims": 24, "depths": [1, 2, 1], "mlp_ratio": 0.0, "downsample_version": "v3", "ssm_ratio": 1.0}
    inert = {"d_state": 1, "dt_rank": 5, "attn_drop_rate": 0.5, "window_size": 3, "use_checkpoint": True}
    inert |= {"shared_ssm": True, "softmax_version": True}
    config = config_from_upstream(flags | inert | {"cls": "EfficientVSSM"})
    assert (config.dims, config.d_state, config.expand) == ((24, 48, 96), 16, 1.0)
    assert (config.mlp_ratio, config.downsample) == (0.0, "conv3")
    for cls in ("Backbone_EfficientVSSM", "MM_EfficientVSSM"):
        assert config_from_upstream({"cls": cls, "pretrained": None}).out_indices == (0, 1, 2, 3)
    assert config_from_upstream({"cls": "Backbone_EfficientVSSM", "out_indices": [1, 2]}).out_indices == (1, 2)


@pytest.mark.parametrize(
    "flags",
    [
        {"step_size": 3},
        {"downsample_version": "none"},
        {"patch_norm": False},
        {"norm_layer": "bn"},
        {"cls": "VSSM"},
        {"ssm_ratio": 3.0},
        {"telepathy": True},
        {"out_indices": [0]},
    ],
)
def test_flags_that_are_not_supported_are_named(flags: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"efficientvmamba: upstream.*{next(iter(flags))}"):
        config_from_upstream(flags)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dims": (8, 16)}, "not of the same stages"),
        ({"depths": (1, 0, 1, 1)}, "not of the same stages"),
        ({"dims": (8, 7, 8, 8)}, "at least 8 channels"),
        ({"downsample": "pool"}, "downsample is 'pool'"),
        ({"expand": 0}, "expand 0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio -1.0"),
        ({"out_indices": (0, 4)}, "not different stages of 0 to 3"),
        ({"out_indices": (1, 1)}, "not different stages"),
        ({"img_size": 16, "downsample": "conv2"}, "at least 32"),
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small(**options)


def test_recognises_its_own_variants_and_no_others(golden: Path) -> None:
    files = sorted((golden / "keys").glob("*.json"))
    assert files
    recognise = families()["efficientvmamba"].recognise
    for path in files:
        keys = json.loads(path.read_text()).get("state_dict", {})
        assert recognise(keys) == path.stem.startswith("efficientvmamba"), path.stem
    assert recognise(small().state_dict())


# ---- the models


def test_variants_and_their_upstream_names() -> None:
    assert list_models("efficientvmamba*") == ["efficientvmamba_b", "efficientvmamba_s", "efficientvmamba_t"]
    assert model_entry("efficientvmamba_tiny").config == EfficientVMambaConfig()
    assert model_entry("efficientvmamba_small").config.dims[0] == 64


@pytest.mark.parametrize("options", [{}, {"mlp_ratio": 2.0, "downsample": "conv3"}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = small(**options).train()
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


def test_another_scan_order() -> None:
    own, cross, raster = (small(scan=scan).eval() for scan in ("atrous2", "cross", "raster"))
    spread(own)
    cross.load_state_dict(own.state_dict())
    raster.load_state_dict(own.state_dict())
    x = picture(2, 60, 84)
    with torch.inference_mode():
        assert (cross(x) - own(x)).abs().max() > 0.01
        torch.testing.assert_close(raster(x), cross(x))  # extended to four directions that is what it is
    with pytest.raises(ScanArgumentError, match="'rastr' is not known; nearest: raster"):
        small(scan="rastr")


def test_windows_are_padded_too() -> None:
    model = small(scan="window7").eval()
    assert model.config.multiple == 7
    with torch.inference_mode():
        assert model(picture(2, 60, 84)).isfinite().all()


@pytest.mark.parametrize(
    ("downsample", "sizes"),
    [
        ("merge", [(15, 21), (8, 11), (4, 6), (2, 3)]),
        ("conv2", [(15, 21), (7, 10), (3, 5), (1, 2)]),
        ("conv3", [(15, 21), (8, 11), (4, 6), (2, 3)]),
    ],
)
def test_maps_of_odd_sizes(downsample: str, sizes: list[tuple[int, int]]) -> None:
    maps: list[Tensor] = []
    with torch.inference_mode():
        small(downsample=downsample).eval().forward_features(picture(1, 60, 84), maps)
    assert [tuple(y.shape[2:]) for y in maps] == sizes


def test_maps_are_as_described() -> None:
    model = small().eval()
    maps: list[Tensor] = []
    with torch.inference_mode():
        features = model.forward_features(picture(2, 64, 96), maps)
        normed = model.classifier["norm"](maps[-1].permute(0, 2, 3, 1))
    expected = [(2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"]) for info in model.feature_info]
    assert [tuple(y.shape) for y in maps] == expected
    assert expected == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 12, 4, 6), (2, 24, 2, 3)]
    torch.testing.assert_close(features, normed)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_pruning_cuts_the_downsampling_off(last: int) -> None:
    whole, model = small().eval(), small().eval()
    maps: list[Tensor] = []
    with torch.inference_mode():
        whole.forward_features(picture(), maps)
        assert model.prune_intermediate_layers([last]) == [last]
        pruned = model.forward_intermediates(picture(), [last], intermediates_only=True)
    torch.testing.assert_close(pruned[0], maps[last])
    stage = model.layers[-1]
    assert len(model.layers) == last + 1
    assert isinstance(stage[-1] if isinstance(stage, ConvStage) else stage.downsample, nn.Identity)
    missing = whole.state_dict().keys() - model.state_dict().keys()
    assert missing == {
        key for key in whole.state_dict() if key.startswith(tuple(f"{p}." for p in model.absent_paths()))
    }


def test_dense_form_returns_normed_maps() -> None:
    plain, dense = small().eval(), small(out_indices=(2, 0)).eval()
    own = dense.state_dict()
    assert {key.partition(".")[0] for key in own} == {"patch_embed", "layers", "outnorm0", "outnorm2"}
    assert set(dense.absent_paths()) == {"classifier.head", "classifier.norm"}
    dense.load_state_dict({key: value for key, value in plain.state_dict().items() if key in own}, strict=False)
    maps: list[Tensor] = []
    with torch.inference_mode():
        plain.forward_features(picture(2, 60, 84), maps)
        third, first = dense(picture(2, 60, 84))
    for y, x in ((third, maps[2]), (first, maps[0])):
        expected = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5)
        torch.testing.assert_close(y, expected.permute(0, 3, 1, 2))


# ---- tracing


def test_exports_with_dynamic_batch_and_without_padding_even_sides() -> None:
    model = small().eval()
    program = torch.export.export(
        model, (picture(2, 64, 96),), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=64)}}
    )
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("selective_scan" in target for target in targets) == 3
    assert not [target for target in targets if "pad" in target or "index_select" in target]
    with torch.inference_mode():
        for batch in (1, 3):
            torch.testing.assert_close(program.module()(picture(batch)), model(picture(batch)))


@pytest.mark.parametrize("options", [{}, {"downsample": "conv2"}, {"out_indices": (0, 2)}])
def test_exports_with_every_size_dynamic(options: dict[str, Any]) -> None:
    model = small(**options).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (picture(2, 64, 96),), dynamic_shapes={"x": sizes})
    with torch.inference_mode():
        for batch, height, width in ((1, 64, 96), (3, 76, 84), (1, 92, 140)):
            x = picture(batch, height, width)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
