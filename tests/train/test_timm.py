"""Models under timm's roof: what timm asks of its own models, on small variants of every family.

The checks are those of timm's generic model tests (forward, backward, features and head, classifier and pooling removed, default
configuration, feature extraction, intermediates), in this project's words. TorchScript is left out: see timm_models.
Precision and stochastic depth are here too, because they are asked of all families alike.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_models import SIDE, SMALL, small_options
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

from edgemamba.runtime.errors import ModelError
from edgemamba.train import create_model, list_models, timm_models
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.registry import families, model_entry


@pytest.fixture(params=sorted(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(f"edgemamba_{name}", **small_options(name, **options))


def pictures(count: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def channels_of(features: Tensor, output_fmt: str) -> int:
    return features.shape[1 if output_fmt == "NCHW" else -1]


# ---- registration


def test_every_family_is_checked_here() -> None:
    assert {model_entry(name).family for name in SMALL} == set(families("classification"))


def test_every_model_is_registered_under_its_name() -> None:
    assert sorted(timm.list_models("edgemamba_*")) == [
        f"edgemamba_{name}" for name in list_models(task="classification")
    ]
    assert timm.list_models("edgemamba_*", pretrained=True) == []
    assert set(timm_models.__all__) == set(timm.list_models("edgemamba_*"))
    assert timm.is_model("edgemamba_vim_tiny")


def test_timm_is_not_imported_with_the_package() -> None:
    code = "import sys, edgemamba.train; edgemamba.train.list_models(); sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", list_models(task="classification"))
def test_the_default_configuration_is_of_the_model(name: str) -> None:
    with torch.device("meta"), torch.inference_mode():
        model = timm.create_model(f"edgemamba_{name}").eval()
        features, maps = model.forward_intermediates(torch.empty(1, *model.default_cfg["input_size"]))
    entry, cfg, keys = model_entry(name), model.default_cfg, model.state_dict().keys()
    assert cfg["architecture"] == f"edgemamba_{name}"
    assert f"{cfg['classifier']}.weight" in keys
    assert f"{cfg['first_conv']}.weight" in keys
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0]
    assert model.num_classes == cfg["num_classes"] == entry.config.num_classes
    assert sum(p.numel() for p in model.parameters()) == entry.params
    assert channels_of(features, model.output_fmt) == model.num_features
    if model.output_fmt != "NLC":
        rows = 2 if model.output_fmt == "NCHW" else 1
        assert features.shape[rows : rows + 2] == maps[-1].shape[2:]
    for y, info in zip(maps, model.feature_info, strict=True):
        check_map(y, info["num_chs"], info["reduction"], cfg["input_size"][1])
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, *entry.preprocessing.size)
    assert (data["mean"], data["std"]) == (entry.preprocessing.mean, entry.preprocessing.std)


def test_keywords_of_timm(name: str) -> None:
    model = small(name, in_chans=4, drop_path_rate=0.25, num_classes=7, drop_rate=0.0, global_pool=None).eval()
    assert (model.config.in_chans, model.config.drop_path_rate, model.num_classes) == (4, 0.25, 7)
    with torch.inference_mode():
        assert model(pictures(channels=4)).shape == (2, 7)
    with pytest.raises(ModelError, match="has no option 'window_sizes'"):
        small(name, window_sizes=3)


def test_weights_come_from_a_file_or_not_at_all(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(name, pretrained=True)
    source = small(name)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w.pth"
    )
    overlay = {"file": str(tmp_path / "w.pth"), "custom_load": True}
    torch.manual_seed(5)
    target = small(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=9)
    assert target.num_classes == 9
    classifier = f"{target.classifier_path}."
    for key, value in source.state_dict().items():
        assert key.startswith(classifier) or torch.equal(target.state_dict()[key], value), key


# ---- forward and backward


def test_forward_and_backward(name: str) -> None:
    model = small(name).train()
    logits = model(pictures())
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_features_and_head_make_the_logits(name: str) -> None:
    model = small(name).eval()
    x = pictures()
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        logits = model(x)
        assert channels_of(features, model.output_fmt) == model.num_features
        assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), logits)
        torch.testing.assert_close(model.get_classifier()(pooled), logits)


def test_classifier_and_pooling_can_be_removed(name: str) -> None:
    model = small(name).eval()
    x = pictures()
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert (model.num_classes, type(model.get_classifier())) == (0, nn.Identity)
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(0, "")
        assert model.global_pool == ""
        torch.testing.assert_close(model(x), features)
        model.reset_classifier(11, model.pooling)
        assert model(x).shape == (2, 11)
        assert model.get_classifier().weight.shape == (11, model.num_features)
        bare = small(name, num_classes=0, global_pool="").eval()
        assert bare(x).shape == features.shape
        assert small(name, num_classes=0).eval()(x).shape == pooled.shape


def test_a_pooling_that_there_is_not_is_refused(name: str) -> None:
    model = small(name)
    with pytest.raises(ModelError, match=f"pools by '{model.pooling}', not by 'catavgmax'"):
        model.reset_classifier(5, "catavgmax")
    with pytest.raises(ModelError, match="a classifier needs pooling"):
        small(name, global_pool="")
    assert model.num_classes == 5


def test_a_copy_is_a_model_of_its_own(name: str) -> None:
    model = small(name).eval()
    twin = copy.deepcopy(model)
    x = pictures(1)
    with torch.inference_mode():
        expected = model(x)
        twin.reset_classifier(0)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert twin(x).shape == (1, model.num_features)


# ---- feature maps


def check_map(y: Tensor, channels: int, reduction: int, side: int = SIDE) -> None:
    assert y.dim() == 4
    assert y.shape[1] == channels
    # Families differ in how they round a map's side; patches that overlap leave a row out.
    assert all(abs(length - side / reduction) < 1.01 for length in y.shape[2:]), (y.shape, reduction)


def test_feature_maps_are_what_their_description_says(name: str) -> None:
    model = small(name, features_only=True).eval()
    x = pictures()
    with torch.inference_mode():
        maps = model(x)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(maps) == len(channels) == len(reductions) > 1
    for y, count, reduction in zip(maps, channels, reductions, strict=True):
        check_map(y, count, reduction)
    assert reductions == sorted(reductions)


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, -2), (-1,), (2, 0), 2])
def test_feature_maps_are_those_asked_for(name: str, out_indices: Any) -> None:
    full = small(name).eval()
    model = small(name, features_only=True, out_indices=out_indices).eval()
    ours = create_model(name, features_only=True, out_indices=out_indices, img_size=SIDE, **SMALL[name]).eval()
    model.model.load_state_dict({k: v for k, v in full.state_dict().items() if k in model.model.state_dict()})
    ours.load_state_dict(model.state_dict())
    x = pictures()
    with torch.inference_mode():
        expected = full.forward_intermediates(x, out_indices, intermediates_only=True)
        for maps in (model(x), ours(x)):
            assert len(maps) == (out_indices if isinstance(out_indices, int) else len(out_indices))
            for y, z in zip(maps, expected, strict=True):
                torch.testing.assert_close(y, z, rtol=0, atol=0)


@pytest.mark.parametrize("out_indices", [(0,), (0, 1), None])
def test_nothing_is_left_that_the_maps_do_not_need(name: str, out_indices: Any) -> None:
    options = {} if out_indices is None else {"out_indices": out_indices}
    model = small(name, features_only=True, **options).train()
    sum(y.square().mean() for y in model(pictures())).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


def test_feature_maps_export_with_dynamic_batch(name: str) -> None:
    model = small(name, features_only=True, out_indices=(0, 2)).eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
    program = torch.export.export(model, (pictures(2),), dynamic_shapes=shapes).module()
    with torch.inference_mode():
        for y, z in zip(program(pictures(3)), model(pictures(3)), strict=True):
            torch.testing.assert_close(y, z)


def test_intermediates_with_the_last_features(name: str) -> None:
    model = small(name).eval()
    x = pictures()
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        torch.testing.assert_close(features, model.forward_features(x))
        assert len(maps) == len(model.feature_info)
        for y, info in zip(maps, model.feature_info, strict=True):
            check_map(y, info["num_chs"], info["reduction"])
        last = maps[-1]
        for output_fmt, shape in (("NHWC", last.permute(0, 2, 3, 1)), ("NLC", last.flatten(2).transpose(1, 2))):
            (y,) = model.forward_intermediates(x, 1, output_fmt=output_fmt, intermediates_only=True)
            torch.testing.assert_close(y, shape)
        normed = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)[0]
        assert normed.shape == last.shape
        assert torch.equal(normed, last) == (model.norm_path is None)


def test_maps_that_there_are_not_are_refused(name: str) -> None:
    model = small(name).eval()
    for indices in ((99,), (-99,), 99, 0, ()):
        with pytest.raises(ModelError, match="feature maps, not those of"):
            model.forward_intermediates(pictures(1), indices)
    with pytest.raises(ModelError, match="output_fmt is 'NCWH'"):
        model.forward_intermediates(pictures(1), output_fmt="NCWH")


# ---- training


def test_gradient_checkpointing_keeps_the_gradients(name: str) -> None:
    gradients = []
    for enable in (False, True):
        model = small(name, features_only=True).train()
        model.model.set_grad_checkpointing(enable)
        sum(y.square().mean() for y in model(pictures())).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_weight_decay_and_layer_decay_find_their_parameters(name: str) -> None:
    model: Backbone = small(name)
    names = {key for key, _ in model.named_parameters()}
    spared = model.no_weight_decay()
    assert spared <= names
    assert spared
    matrices = [key for key, p in model.named_parameters() if p.ndim > 1 and key.endswith("weight")]
    assert not spared & set(matrices)

    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=spared)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(names)
    stem = scale[id(model.get_submodule(model.first_conv).weight)]
    head = scale[id(model.get_classifier().weight)]
    firsts = [
        next(scale[id(p)] for p in model.get_submodule(info["module"]).parameters()) for info in model.feature_info
    ]
    assert stem == min(scale.values())
    assert head == max(scale.values()) == 1.0
    assert stem < firsts[0]
    assert firsts == sorted(set(firsts))
    assert firsts[-1] < head
    assert create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=0.5).param_groups


def test_coarse_groups_are_stages(name: str) -> None:
    model: Backbone = small(name)
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == len(model.feature_info) + 2
    assert sum(map(len, coarse.values())) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(name: str, dtype: torch.dtype) -> None:
    model = small(name).train()
    with torch.autocast("cpu", dtype=dtype):
        logits = model(pictures())
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_runs_in_half_precision(name: str) -> None:
    model, x = small(name).eval(), pictures()
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(model.half()(x.half()).float(), expected, rtol=0, atol=2e-3)


def test_drop_path_is_random_in_training_only(name: str) -> None:
    model, plain = small(name, drop_path_rate=0.9), small(name)
    plain.load_state_dict(model.state_dict())
    x = pictures()
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
        model.train()
        torch.manual_seed(3)
        first, second = model(x), model(x)
    assert not torch.equal(first, second)
