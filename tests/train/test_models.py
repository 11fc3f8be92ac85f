"""Making models: names, options, timm's manners, training features, tracing."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train import create_model, list_models
from edgemamba.train.commands.models import models as models_command
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.registry import model_entry, model_from_upstream_config

SMALL = {
    "vim_tiny": {"img_size": 64, "embed_dim": 32, "depth": 3, "num_classes": 5},
    "medmamba_t": {"img_size": 64, "dims": (8, 16, 32), "depths": (1, 2, 1), "num_classes": 5},
}


def small(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    return create_model(name, **(SMALL[name] | options))  # type: ignore[arg-type]


@pytest.fixture(params=sorted(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def picture(batch: int = 2, height: int = 64, width: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- names and options


def test_names_patterns_and_aliases() -> None:
    assert list_models("vim*") == ["vim_base", "vim_small", "vim_small_stride8", "vim_tiny", "vim_tiny_stride8"]
    assert list_models("medmamba*") == ["medmamba_b", "medmamba_s", "medmamba_t"]
    long_name = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
    assert list_models(long_name) == ["vim_tiny"]
    with torch.device("meta"):
        assert create_model(long_name).model_name == "vim_tiny"
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", list_models())
def test_a_registered_model_has_the_parameters_it_states(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == model_entry(name).params


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'vim_tny' is not known; nearest: vim_tiny"):
        create_model("vim_tny")
    with pytest.raises(ModelError, match=r"vim_tiny has no option 'image_size'; nearest: img_size"):
        create_model("vim_tiny", image_size=96)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("vim_tiny", {"img_size": 8}, "smaller than a patch"),
        ("vim_tiny", {"img_size": (1, 2, 3)}, "not a size"),
        ("vim_tiny", {"img_size": -224}, "not a size"),
        ("vim_tiny", {"rope": True, "img_size": (32, 64)}, "square"),
        ("vim_tiny", {"cls_token": "centre"}, "cls_token"),
        ("vim_tiny", {"depth": 0}, "depth is 0"),
        ("medmamba_t", {"drop_path_rate": 1.5}, "drop_path_rate is 1.5"),
        ("medmamba_t", {"dims": (96, 192, 400, 768)}, "twice"),
        ("medmamba_t", {"depths": (2, 2)}, "not of the same stages"),
        ("medmamba_t", {"img_size": 16}, "at least 32"),
        ("medmamba_t", {"img_size": 100_000}, "medmamba_t: size .* has more than"),
        ("segmamba", {"img_size": 100_000}, "segmamba: .* is not a patch"),
    ],
)
def test_options_that_make_no_model_are_refused(name: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        create_model(name, **options)  # type: ignore[arg-type]


def test_a_model_describes_itself(name: str) -> None:
    model = small(name, img_size=(64, 96))
    assert model.model_name == name
    assert model.preprocessing.size == (64, 96)
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    again = create_model(model.model_name, **config)
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_preprocessing_is_the_published_evaluation() -> None:
    assert model_entry("vim_tiny").preprocessing == Preprocessing()
    medmamba = model_entry("medmamba_t").preprocessing
    assert (medmamba.resize, medmamba.mean, medmamba.std) == ("squash", (0.5,) * 3, (0.5,) * 3)


def test_upstream_flags_that_are_not_supported_are_refused() -> None:
    with pytest.raises(ModelError, match="bimamba_type='v1'"):
        model_from_upstream_config("vim", {"bimamba_type": "v1"})
    with pytest.raises(ModelError, match="not supported: if_telepathic"):
        model_from_upstream_config("vim", {"if_telepathic": True})
    with pytest.raises(ModelError, match="family 'vin' is not known; nearest: vim"):
        model_from_upstream_config("vin", {})


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    models_command("vim_t*")
    table = capsys.readouterr().out
    assert "vim_tiny" in table
    assert "7.15 M" in table
    models_command("vim_t*", as_json=True)
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == ["vim_tiny", "vim_tiny_stride8"]
    assert entries[0]["params"] == 7148008
    with pytest.raises(ModelError, match="no model matches"):
        models_command("resnet*")


# ---- timm's manners


def test_features_head_and_classifier(name: str) -> None:
    model = small(name).eval()
    x = picture()
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        logits = model(x)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), logits)
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        assert model.num_classes == 7
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        torch.testing.assert_close(model(x), pooled)


def test_weight_decay_spares_states_and_positions(name: str) -> None:
    model = small(name)
    spared = model.no_weight_decay()
    names = {key for key, _ in model.named_parameters()}
    assert spared <= names
    assert all(key in spared for key in names if key.rpartition(".")[2] in ("A_log", "A_b_log", "A_logs", "pos_embed"))
    assert not any(key.endswith("in_proj.weight") for key in spared)


# ---- training


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = small(name, drop_path_rate=0.0).train()
    nn.functional.cross_entropy(model(picture()), torch.tensor([1, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    def gradients(enable: bool) -> dict[str, Tensor]:
        model = small(name, drop_path_rate=0.0).train()
        model.set_grad_checkpointing(enable)
        model(picture()).square().sum().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, msg=lambda m, k=key: f"{k}: {m}")


def test_initial_step_sizes_are_in_their_range(name: str) -> None:
    model = small(name)
    biases = [p for key, p in model.named_parameters() if key.endswith(("dt_proj.bias", "dt_projs_bias"))]
    dt = nn.functional.softplus(torch.cat([bias.detach().flatten() for bias in biases]))
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 0.101
    assert dt.max() / dt.min() > 10


# ---- sizes


def test_vim_refuses_another_size_and_says_how(name: str) -> None:
    if name != "vim_tiny":
        assert small(name).eval()(picture(1, 72, 104)).shape == (1, 5)
        return
    with pytest.raises(ModelError, match=r"64x96, the model 64x64: make it with img_size=\(64, 96\), or"):
        small(name)(picture(1, 64, 96))


@pytest.mark.parametrize("cls_token", ["none", "first", "middle", "double"])
def test_vim_with_dynamic_size(cls_token: str) -> None:
    fixed = small("vim_tiny", cls_token=cls_token).eval()
    dynamic = small("vim_tiny", cls_token=cls_token, dynamic_img_size=True).eval()
    dynamic.load_state_dict(fixed.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(dynamic(picture()), fixed(picture()))
        assert dynamic(picture(1, 96, 48)).shape == (1, 5)


@pytest.mark.parametrize("pool", ["last", "mean", "max", "all"])
def test_vim_pools_without_a_class_token(pool: str) -> None:
    model = small("vim_tiny", cls_token="none", pool=pool).eval()
    with torch.inference_mode():
        tokens = model.head(model.forward_features(picture()))
        expected = {"last": tokens[:, -1], "mean": tokens.mean(1), "max": tokens.amax(1), "all": tokens}[pool]
        torch.testing.assert_close(model(picture()), expected)


# ---- tracing


def test_exports_with_dynamic_batch(name: str) -> None:
    model = small(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (picture(2),), dynamic_shapes={"x": {0: batch}})
    scans = [n for n in program.graph.nodes if n.target is torch.ops.edgemamba.selective_scan.default]
    blocks = sum(type(m).__name__ in ("VimBlock", "SSConvSSM") for m in model.modules())
    assert len(scans) == blocks
    with torch.inference_mode():
        for count in (1, 3):
            torch.testing.assert_close(program.module()(picture(count)), model(picture(count)))


def test_exports_with_dynamic_size(name: str) -> None:
    options = {"dynamic_img_size": True} if name == "vim_tiny" else {}
    model = small(name, **options).eval()
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (picture(1, 64, 96),), dynamic_shapes={"x": sides})
    with torch.inference_mode():
        for height, width in ((64, 96), (80, 48), (92, 71)):
            x = picture(1, height, width)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_value_of_another_kind_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"medmamba_t cannot be made with dims=5"):
        create_model("medmamba_t", dims=5)
