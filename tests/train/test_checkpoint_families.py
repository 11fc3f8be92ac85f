"""Checkpoints of every family: the files that each upstream writes, other classes, other sizes, and no family taken for another."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import CLASSES, SIDE, SMALL, small_model
from torch import Tensor

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.checkpoint import count_classes
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.registry import families, model_entry

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def average_of(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def deit_file(state: State) -> dict[str, Any]:
    """Vim's main.py, after DeiT's."""
    rest = {"optimizer": {"state": {}}, "epoch": 299, "scaler": {}, "args": argparse.Namespace(lr=1e-3)}
    return {"model": state, "model_ema": average_of(state), **rest}


def timm_file(state: State) -> dict[str, Any]:
    """timm's saver, with which MambaVision is trained."""
    rest = {"epoch": 309, "arch": "mamba_vision_T", "version": 2, "args": argparse.Namespace(lr=1e-3), "metric": 82.3}
    return {**rest, "state_dict": state, "state_dict_ema": average_of(state)}


def mmcv_file(state: State) -> dict[str, Any]:
    """mmcv with EMAHook: the average under the weights' names, the weights in buffers."""
    buffers = {"ema_" + key.replace(".", "_"): value - 1 for key, value in state.items()}
    return {"meta": {"epoch": 300, "CLASSES": ("a",)}, "state_dict": state | buffers, "optimizer": {"state": {}}}


def raw_file(state: State) -> dict[str, Any]:
    """The training scripts of LocalMamba and EfficientVMamba."""
    return {"model": state, "ema_model": prefixed("module.module.", average_of(state)), "epoch": 1}


def release_file(state: State) -> dict[str, Any]:
    """The same, converted for release."""
    return {"state_dict": prefixed("module.module.", state)}


# Family -> what its upstream's files look like, and where the report says the weights were.
FILES: dict[str, list[tuple[Callable[[State], Any], str]]] = {
    "vim": [(deit_file, "model")],
    "medmamba": [(lambda state: state, "the top level")],
    "vmamba": [(deit_file, "model")],
    "efficientvmamba": [(release_file, "state_dict, prefix module.module."), (raw_file, "model")],
    "mambavision": [
        (timm_file, "state_dict"),
        (lambda state: {"state_dict": prefixed("module.encoder.", state)}, "state_dict, prefix module.encoder."),
        (lambda state: prefixed("model.", state), "the top level, prefix model."),
    ],
    "local_mamba": [(lambda state: {"state_dict": state}, "state_dict"), (raw_file, "model")],
    "plain_mamba": [
        (mmcv_file, "state_dict"),
        (lambda state: {"state_dict": prefixed("module.", state)}, "state_dict, prefix module."),
    ],
}


@pytest.fixture(params=sorted(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def equal(target: Backbone, state: State, but: tuple[str, ...] = ()) -> None:
    for key, value in state.items():
        assert key.startswith(but) or torch.equal(target.state_dict()[key], value), key


def test_every_family_is_checked_here() -> None:
    assert {model_entry(name).family for name in SMALL} == set(families("classification")) == set(FILES)


def test_upstreams_files_are_read(name: str, tmp_path: Path) -> None:
    source = small_model(name)
    for i, (write, layout) in enumerate(FILES[model_entry(name).family]):
        torch.save(write(source.state_dict()), tmp_path / "w.pth")
        target = small_model(name, seed=i + 1)
        report = load_checkpoint(target, tmp_path / "w.pth")
        assert (report.layout, report.matched, report.adapted) == (layout, len(source.state_dict()), {})
        equal(target, source.state_dict())


def test_hugging_faces_files_are_read(name: str, tmp_path: Path) -> None:
    source, target = small_model(name), small_model(name, seed=1)
    save_file(prefixed("model.", source.state_dict()), tmp_path / "model.safetensors")
    report = load_checkpoint(target, tmp_path / "model.safetensors")
    assert (report.layout, report.adapted, report.notes) == ("the top level, prefix model.", {}, ())
    equal(target, source.state_dict())


def test_another_number_of_classes_leaves_the_classifier(name: str, tmp_path: Path) -> None:
    source, target = small_model(name), small_model(name, seed=1, num_classes=9)
    untouched = target.get_classifier().weight.clone()
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    classifier = f"{target.classifier_path}."
    assert set(report.adapted) == {f"{classifier}weight", f"{classifier}bias"}
    assert f"{CLASSES} classes in the file, 9 in the model: left as it was, untrained" in str(report)
    assert torch.equal(target.get_classifier().weight, untouched)
    equal(target, source.state_dict(), but=(classifier,))
    assert count_classes({"model": source.state_dict()}, Path("w.pth"), name) == CLASSES


def test_a_model_without_classifier_takes_the_rest(name: str, tmp_path: Path) -> None:
    source, target = small_model(name), small_model(name, seed=1, num_classes=0)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert (report.matched, report.adapted) == (len(target.state_dict()), {})
    assert len(report.notes) == 1
    equal(target, {key: source.state_dict()[key] for key in target.state_dict()})


def test_features_only_takes_what_it_has_kept(name: str, tmp_path: Path) -> None:
    source = small_model(name).eval()
    target = create_model(name, features_only=True, out_indices=(0, 1), img_size=SIDE, **SMALL[name]).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert (report.matched, report.adapted) == (len(target.state_dict()), {})
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = source.forward_intermediates(x, (0, 1), intermediates_only=True)
        for y, z in zip(target(x), expected, strict=True):
            torch.testing.assert_close(y, z)


# ---- dense backbones

DENSE = [name for name in SMALL if hasattr(model_entry(name).config, "out_indices")]


@pytest.mark.parametrize("name", DENSE)
def test_a_detectors_file_gives_its_backbone(name: str, tmp_path: Path) -> None:
    source, target = (small_model(name, seed, out_indices=(0, 2)) for seed in (0, 1))
    others = {"neck.lateral_convs.0.conv.weight": torch.zeros(4, 4, 1, 1), "decode_head.conv_seg.bias": torch.zeros(3)}
    state = prefixed("backbone.", source.state_dict()) | others
    torch.save({"meta": {"seed": 1}, "state_dict": state}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert (report.layout, report.adapted) == ("state_dict, prefix backbone.", {})
    assert report.notes == ("2 tensors beside backbone.* left out (decode_head, neck)",)
    equal(target, source.state_dict())


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_dense_backbone_starts_from_a_classifier(name: str, prefix: str, tmp_path: Path) -> None:
    source, target = small_model(name), small_model(name, seed=1, out_indices=(0, 1))
    torch.save({"state_dict": prefixed(prefix, source.state_dict())}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert {key.partition(".")[0] for key in report.adapted} == {"outnorm0", "outnorm1"}
    assert all("left as it was, untrained" in how for how in report.adapted.values())
    assert [note.partition(":")[0] for note in report.notes] == [target.classifier_path, target.norm_path]
    equal(target, {key: value for key, value in source.state_dict().items() if key in target.state_dict()})
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        maps = source.eval().forward_intermediates(x, (0, 1), intermediates_only=True)
        for i, y in enumerate(target.eval()(x)):
            torch.testing.assert_close(y, target.get_submodule(f"outnorm{i}")(maps[i]))


@pytest.mark.parametrize("name", DENSE)
def test_a_classifier_is_not_made_of_a_dense_backbone(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": small_model(name, out_indices=(0,)).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing .*; 2 unexpected \(outnorm0\.weight, outnorm0\.bias\)"):
        load_checkpoint(small_model(name), tmp_path / "w.pth")


# ---- sizes, names, memory


def test_another_size_is_the_model_run_at_that_size(name: str, tmp_path: Path) -> None:
    """Where a model takes any size, one made for another size and given its weights says the same."""
    source = small_model(name).eval()
    size = (SIDE, SIDE + 32)
    target = small_model(name, seed=1, img_size=size).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    positions = [key for key, value in source.state_dict().items() if value.shape != target.state_dict()[key].shape]
    assert set(report.adapted) == set(positions)
    if name == "vim_tiny":  # whose fine-tuning moves the class token's row: see upstream_resize_pos_embed
        assert positions == ["pos_embed"]
        return
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(target(x), source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vanilla_vmamba_t", "efficientvmamba_t"])
def test_vmambas_older_names_are_read_and_told(name: str, tmp_path: Path) -> None:
    source, target = small_model(name), small_model(name, seed=1)
    older = (
        (r"patch_embed\.0\.", "patch_embed.proj."),
        (r"patch_embed\.2\.", "patch_embed.norm."),
        (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."),
        (r"(blocks\.\d+)\.op\.", r"\1.self_attention."),
        (r"classifier\.", ""),
    )
    old = {}
    for key, value in source.state_dict().items():
        for pattern, replacement in older:
            key = re.sub(pattern, replacement, key)
        old[key] = value
    torch.save({"model": old}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.adapted == {}
    assert "tensors under other names of upstream's (patch_embed.proj.weight, " in str(report)
    equal(target, source.state_dict())
    assert count_classes({"model": old}, Path("w.pth"), name) == CLASSES


@pytest.mark.parametrize("scale", ["g", "weight"])
def test_mambavisions_scales_are_read_by_their_names_on_hubs(scale: str, tmp_path: Path) -> None:
    source, target = small_model("mambavision_t"), small_model("mambavision_t", seed=1)
    state = {key.replace("gamma_", f"{scale}_"): value for key, value in source.state_dict().items()}
    assert state.keys() != source.state_dict().keys()
    save_file(prefixed("model.", state), tmp_path / "model.safetensors")
    report = load_checkpoint(target, tmp_path / "model.safetensors")
    assert report.adapted == {}
    assert f"tensors under other names of upstream's (levels.2.blocks.0.{scale}_1, " in str(report)
    equal(target, source.state_dict())


def test_no_two_tensors_share_memory(name: str) -> None:
    """LocalMamba's states do upstream, so that loading on the CPU gives all of a mixer's directions the last one's."""
    tensors = list(small_model(name).state_dict().values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}) == len(tensors)


def test_a_family_is_not_taken_for_another(name: str, tmp_path: Path) -> None:
    family = families()[model_entry(name).family]
    state = small_model(name).state_dict()
    assert [other.name for other in families().values() if other.recognise(state.keys())] == [family.name]
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "w.pth")
    for other in SMALL:
        if model_entry(other).family != family.name:
            with pytest.raises(CheckpointError, match=rf"it looks like a {family.title} checkpoint \({family.name}\)"):
                load_checkpoint(small_model(other), tmp_path / "w.pth")
