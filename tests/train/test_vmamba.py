"""VMamba: what the golden cases do not show: the scan alone, upstream's flags and names, export, training, the dense form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import golden_folder
from safetensors.torch import load_file
from torch import Tensor

from edgemamba.runtime.errors import EdgeMambaError, ModelError
from edgemamba.train import create_model, list_models
from edgemamba.train.models.ss2d import SS2D
from edgemamba.train.models.vmamba import VMamba, VMambaConfig, config_from_upstream
from edgemamba.train.models.vmamba_keys import recognise, rename_checkpoint_keys
from edgemamba.train.registry import model_entry
from edgemamba.train.scan_orders import scan_order

SMALL: dict[str, Any] = {"num_classes": 5, "dims": (8, 16, 24), "depths": (1, 2, 1), "drop_path_rate": 0.0}
KINDS = ("vmamba_t", "vanilla_vmamba_t")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "op" in metafunc.fixturenames:
        files = sorted((golden_folder(metafunc.config) / "ops").glob("op_vmamba_ss2d_*.safetensors"))
        metafunc.parametrize("op", files, ids=[path.stem for path in files])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def small(kind: str, **options: Any) -> VMamba:
    torch.manual_seed(0)
    model = create_model(kind, **(SMALL | options))
    assert isinstance(model, VMamba)
    return model


def picture(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- the scan alone


def test_ss2d_equals_upstream(op: Path) -> None:
    sidecar, tensors = json.loads(op.with_suffix(".json").read_text()), load_file(op)
    given = sidecar["config"]
    config = config_from_upstream({"forward_type": given["forward_type"]})
    conv_bias = given.get("conv_bias", True)
    module = SS2D(
        given["d_model"],
        given["d_state"],
        given["ssm_ratio"],
        conv_bias=conv_bias,
        gate=config.gate,
        out_act=config.out_act,
    ).eval()
    module.load_state_dict({k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")})
    order = scan_order(config.scan, (sidecar["H"], sidecar["W"]), directions=4)

    def run(x: Tensor) -> Tensor:
        if given.get("channel_first", False):
            return module(x.permute(0, 2, 3, 1), order).permute(0, 3, 1, 2)
        return module(x, order)

    with torch.inference_mode():
        single = run(tensors["input"])
        module.double()
        double = run(tensors["input"].double())
    torch.testing.assert_close(double, tensors["output_fp64"], rtol=0, atol=1e-9)
    torch.testing.assert_close(single, tensors["output"], rtol=0, atol=max(1e-5, 10 * sidecar["max_abs_fp32_vs_fp64"]))


# ---- upstream's flags


@pytest.mark.parametrize(
    ("forward_type", "gate", "out_act", "scan"),
    [
        ("v0", "silu", False, "cross"),
        ("v01", "silu", False, "cross"),
        ("v3_noz", "none", False, "cross"),
        ("v04_nozact_no32", "linear", False, "cross"),
        ("v05_noz_oact", "none", True, "cross"),
        ("v05_nozact_noz_oact_no32", "none", True, "cross"),
        ("v051d_noz", "none", False, "cross-unidirectional"),
        ("v052d", "silu", False, "cross-bidirectional"),
    ],
)
def test_forward_types(forward_type: str, gate: str, out_act: bool, scan: str) -> None:
    config = config_from_upstream({"forward_type": forward_type})
    assert (config.gate, config.out_act, config.scan) == (gate, out_act, scan)


@pytest.mark.parametrize(
    "flags",
    [
        {"forward_type": "v2"},
        {"forward_type": "v0_noz"},
        {"forward_type": "v05_oact_noz"},
        {"forward_type": "v05_onsoftmax"},
        {"forward_type": "m0"},
        {"posembed": True},
        {"patch_norm": False},
        {"norm_layer": "bn"},
        {"gmlp": True},
        {"ssm_conv": 5},
        {"ssm_act_layer": "gelu"},
        {"downsample_version": "none"},
        {"cls": "VSSD"},
        {"telepathy": True},
        {"cls": "VSSM", "out_indices": [0]},
    ],
)
def test_flags_that_are_not_supported_are_named(flags: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"vmamba: upstream.*{list(flags)[-1]}"):
        config_from_upstream({"forward_type": "v05_noz"} | flags)


def test_flags_of_upstream_become_ours() -> None:
    flags = {
        "forward_type": "v05",
        "dims": 24,
        "depths": [1, 2, 1],
        "ssm_dt_rank": 5,
        "mlp_ratio": -1.0,
        "ssm_init": "v2",
    }
    config = config_from_upstream(flags | {"cls": "Backbone_VSSM", "out_indices": [1, 2], "pretrained": None})
    assert config.dims == (24, 48, 96)
    assert (config.dt_rank, config.mlp_ratio, config.out_indices) == (5, 0.0, (1, 2))
    assert (config.stem, config.downsample, config.d_state, config.conv_bias) == ("patch", "conv2", 16, True)
    for cls in ("Backbone_VSSM", "MM_VSSM"):
        dense = config_from_upstream({"forward_type": "v05", "cls": cls})
        assert (dense.out_indices, dense.depths) == ((0, 1, 2, 3), (2, 2, 9, 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dims": (8, 16)}, "not of the same stages"),
        ({"depths": (1, 0, 1)}, "not of the same stages"),
        ({"stem": "convolution"}, "stem is 'convolution'"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"expand": 0}, "expand 0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio -1.0"),
        ({"dt_rank": 0}, "dt_rank is 0"),
        ({"patch_size": 3}, "needs even"),
        ({"out_indices": (0, 3)}, "not different stages of 0 to 2"),
        ({"out_indices": (1, 1)}, "not different stages"),
        ({"img_size": 12, "downsample": "conv2"}, "at least 16"),
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small("vmamba_t", **options)


# ---- upstream's key names


def legacy(key: str) -> str:
    for ours, theirs in (
        (".norm.", ".ln_1."),
        (".op.", ".self_attention."),
        ("downsample.ln_1.", "downsample.norm."),
        ("classifier.ln_1.", "norm."),
        ("classifier.head.", "head."),
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
    ):
        key = key.replace(ours, theirs)
    return key


def one_file(key: str, value: Tensor) -> tuple[str, Tensor]:
    """Name and shape in the code at the root of upstream's repository."""
    if key.endswith(("x_proj_weight", "dt_projs_weight")):
        return key.replace("_weight", ".weight"), value.flatten(0, 1)
    return key.replace("downsample.norm.", "downsample.1.").replace("downsample.reduction.", "downsample.2."), value


def convolutions(key: str, value: Tensor) -> tuple[str, Tensor]:
    linear = key.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight"))
    return key, value[:, :, None, None] if linear else value


def assert_renamed(model: VMamba, state: dict[str, Tensor]) -> None:
    renamed, own = rename_checkpoint_keys(state), model.state_dict()
    assert renamed.keys() == own.keys()
    for key, value in own.items():
        torch.testing.assert_close(renamed[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("spelling", [one_file, convolutions, lambda key, value: (key, value)])
def test_other_spellings_of_the_keys(kind: str, spelling: Callable[[str, Tensor], tuple[str, Tensor]]) -> None:
    model = small(kind)
    state = dict(spelling(key, value) for key, value in model.state_dict().items())
    assert recognise(state.keys())
    assert_renamed(model, state)


def test_legacy_names_of_the_vanilla_models() -> None:
    model = small("vanilla_vmamba_t")
    state = {legacy(key): value for key, value in model.state_dict().items()}
    assert {"patch_embed.proj.weight", "layers.0.blocks.0.ln_1.bias", "head.bias", "norm.weight"} <= state.keys()
    assert not [key for key in state if ".op." in key]
    assert recognise(state.keys())
    assert_renamed(model, state)


def test_legacy_names_equal_upstream(golden: Path) -> None:
    path = golden / "keys" / "vanilla_vmamba_tiny_LEGACY_NAMES.json"
    if not path.is_file():
        pytest.skip("the golden folder holds no legacy names")
    shapes = {key: tuple(value["shape"]) for key, value in json.loads(path.read_text())["state_dict"].items()}
    renamed = rename_checkpoint_keys({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    with torch.device("meta"):
        own = create_model("vanilla_vmamba_t").state_dict()
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}


def test_recognises_its_own_variants_and_no_others(golden: Path) -> None:
    files = sorted((golden / "keys").glob("*.json"))
    assert files
    for path in files:
        keys = json.loads(path.read_text()).get("state_dict", {})
        assert recognise(keys) == path.stem.startswith(("vmamba", "vanilla_vmamba")), path.stem


# ---- the models


def test_variants_and_their_upstream_names() -> None:
    names = list_models("*vmamba_tiny*") + list_models("*vmamba_small*") + list_models("*vmamba_base*")
    own = [name for name in names if model_entry(name).family == "vmamba"]
    assert len(own) == 9
    assert model_entry("vmamba_tiny_s1l8") is model_entry("vmamba_t")
    assert model_entry("vmamba_t").config == VMambaConfig()


def test_every_parameter_gets_a_gradient(kind: str) -> None:
    model = small(kind).train()
    model.set_grad_checkpointing(True)
    torch.nn.functional.cross_entropy(model(picture(2, 61, 85)), torch.tensor([1, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_another_scan_order(kind: str) -> None:
    cross, raster, column = (small(kind, scan=scan).eval() for scan in ("cross", "raster", "column"))
    for parameter in cross.parameters():  # a fresh model's directions are nearly alike
        torch.nn.init.normal_(parameter, std=0.3)
    raster.load_state_dict(cross.state_dict())
    column.load_state_dict(cross.state_dict())
    x = picture()
    with torch.inference_mode():
        # Extended to four directions, "raster" is "cross", and "column" begins with the other pair.
        torch.testing.assert_close(raster(x), cross(x))
        assert (column(x) - cross(x)).abs().max() > 0.01
    with pytest.raises(EdgeMambaError, match="'rastr' is not known; nearest: raster"):
        small(kind, scan="rastr")


@pytest.mark.parametrize("options", [{"gate": "linear"}, {"gate": "silu", "out_act": True}, {"downsample": "conv2"}])
def test_the_gate_and_the_activation_change_the_result(options: dict[str, Any]) -> None:
    plain, other = small("vmamba_t").eval(), small("vmamba_t", **options).eval()
    with torch.inference_mode():
        assert other(picture()).isfinite().all()
        assert not torch.allclose(other(picture()), plain(picture()))


def test_maps_are_as_described(kind: str) -> None:
    model = small(kind).eval()
    maps: list[Tensor] = []
    with torch.inference_mode():
        features = model.forward_features(picture(2, 64, 96), maps)
        normed = model.classifier["norm"](maps[-1].permute(0, 2, 3, 1))
    expected = [(2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"]) for info in model.feature_info]
    assert [tuple(y.shape) for y in maps] == expected == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6)]
    torch.testing.assert_close(features, normed)


@pytest.mark.parametrize(("height", "width", "last"), [(60, 84, (4, 6)), (61, 85, (4, 6)), (1, 4, (1, 1))])
def test_odd_sides_are_rounded_up(height: int, width: int, last: tuple[int, int]) -> None:
    maps: list[Tensor] = []
    with torch.inference_mode():
        small("vmamba_t").forward_features(picture(1, height, width), maps)
    assert tuple(maps[-1].shape[2:]) == last


def test_dense_form_returns_normed_maps(kind: str) -> None:
    plain, dense = small(kind).eval(), small(kind, out_indices=(2, 0)).eval()
    own = dense.state_dict()
    assert not [key for key in own if key.startswith("classifier")]
    assert {key.partition(".")[0] for key in own} - {"patch_embed", "layers"} == {"outnorm0", "outnorm2"}
    assert set(dense.absent_paths()) == {"classifier.head", "classifier.norm"}
    dense.load_state_dict({key: value for key, value in plain.state_dict().items() if key in own}, strict=False)
    maps: list[Tensor] = []
    with torch.inference_mode():
        plain.forward_features(picture(), maps)
        last, first = dense(picture())
    for y, x in ((last, maps[2]), (first, maps[0])):
        expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5)
        torch.testing.assert_close(y, expected.permute(0, 3, 1, 2))
    with pytest.raises(ModelError, match="has no classifier"):
        dense.reset_classifier(3)


# ---- tracing


@pytest.mark.parametrize("options", [{}, {"out_indices": (0, 2)}])
def test_exports_with_every_size_dynamic(kind: str, options: dict[str, Any]) -> None:
    model = small(kind, **options).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (picture(2, 64, 96),), dynamic_shapes={"x": sizes})
    scans = [n for n in program.graph.nodes if n.target is torch.ops.edgemamba.selective_scan.default]
    assert len(scans) == sum(model.config.depths)
    with torch.inference_mode():
        for batch, height, width in ((1, 64, 96), (3, 61, 85), (1, 60, 44)):
            x = picture(batch, height, width)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
