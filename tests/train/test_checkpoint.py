"""Checkpoints: every layout is recognised, nothing in a file is run, and what does not fit is refused with its keys."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train import LoadReport, create_model, load_checkpoint
from edgemamba.train.checkpoint import METADATA_KEY, read_training_checkpoint, training_metadata
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.position import upstream_resize_pos_embed


def vim(**options: Any) -> Backbone:
    return create_model("vim_tiny", **({"img_size": 48, "embed_dim": 16, "depth": 1, "num_classes": 5} | options))


def medmamba() -> Backbone:
    return create_model("medmamba_t", img_size=32, dims=(8, 16), depths=(1, 1), num_classes=5)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def training_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Vim's training script writes."""
    arguments = argparse.Namespace(model="vim_tiny", lr=1e-3, output_dir=Path("out").name)
    average = {key: torch.full_like(value, 7) for key, value in state.items()}
    return {
        "model": state,
        "model_ema": average,
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {},
        "epoch": 299,
        "scaler": {},
        "args": arguments,
    }


LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "bare": (lambda s: s, "the top level"),
    "ordered": (lambda s: collections.OrderedDict(s), "the top level"),
    "ddp": (lambda s: prefixed("module.", s), "the top level, prefix module."),
    "vim": (training_file, "model"),
    "timm": (lambda s: {"state_dict": s, "epoch": 3, "arch": "vim"}, "state_dict"),
    "ema of ddp": (lambda s: {"state_dict": prefixed("module.module.", s)}, "state_dict, prefix module.module."),
    "hugging face": (lambda s: prefixed("model.", s), "the top level, prefix model."),
    "named": (lambda s: {"model_state_dict": prefixed("backbone.", s)}, "model_state_dict, prefix backbone."),
    "ema only": (lambda s: {"model_ema": s}, "model_ema"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".ckpt"])
def test_layouts_are_recognised(layout: str, suffix: str, tmp_path: Path) -> None:
    write, name = LAYOUTS[layout]
    source, target = vim(), vim()
    path = tmp_path / f"weights{suffix}"
    torch.save(write(source.state_dict()), path)
    report = load_checkpoint(target, path)
    assert report == LoadReport(path, name, len(source.state_dict()), {})
    assert name in str(report)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_safetensors(tmp_path: Path) -> None:
    source, target = medmamba(), medmamba()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    report = load_checkpoint(target, str(tmp_path / "weights.safetensors"))
    assert report.matched == len(source.state_dict())
    assert torch.equal(target.head.weight, source.head.weight)


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    source, target = vim(), vim()
    torch.save(source.half().state_dict(), tmp_path / "w.pth")
    load_checkpoint(target, tmp_path / "w.pth")
    assert target.head.weight.dtype == torch.float32
    assert torch.equal(target.head.weight, source.head.weight.float())


# ---- what is adapted


def test_another_number_of_classes_leaves_the_classifier(tmp_path: Path) -> None:
    source, target = vim(num_classes=9), vim(num_classes=5)
    untouched = target.head.weight.clone()
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert set(report.adapted) == {"head.weight", "head.bias"}
    assert "9 classes in the file, 5 in the model: left as it was, untrained" in str(report)
    assert report.matched == len(source.state_dict()) - 2
    assert torch.equal(target.head.weight, untouched)
    assert torch.equal(target.cls_token, source.cls_token)


def test_a_model_without_classifier_takes_the_rest(tmp_path: Path) -> None:
    source, target = vim(), vim(num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.matched == len(target.state_dict())
    assert set(report.adapted) == {"head.weight", "head.bias"}


def test_positions_are_resized_as_in_fine_tuning(tmp_path: Path) -> None:
    source, target = vim(), vim(img_size=(64, 96))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.adapted["pos_embed"] == "resized from a grid of 3x3 to 4x6 (bicubic), for fine-tuning"
    resized = upstream_resize_pos_embed(source.pos_embed.detach(), (4, 6), 1)
    assert torch.equal(target.pos_embed, resized)
    # Upstream's rule keeps row 0 although the class token is in the middle.
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])


# ---- what is refused


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda s: s.pop("layers.0.mixer.D"), r"1 missing \(layers\.0\.mixer\.D\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"cls_token": torch.zeros(1, 1, 8)}),
            r"1 of another shape \(cls_token \(1, 1, 8\) instead of \(1, 1, 16\)\)",
        ),
        (lambda s: [s.pop(key) for key in list(s) if "mixer" in key], r"16 missing .* and 12 more"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    spoil: Callable[[dict[str, Tensor]], object], text: str, tmp_path: Path
) -> None:
    state = vim().state_dict()
    spoil(state)
    torch.save({"model": state}, tmp_path / "w.pth")
    target = vim()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=text) as caught:
        load_checkpoint(target, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_another_family_is_named(tmp_path: Path) -> None:
    torch.save(medmamba().state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"does not fit vim_tiny, it looks like a MedMamba checkpoint"):
        load_checkpoint(vim(), tmp_path / "w.pth")


class Hostile:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pth"
    content = {"model": vim().state_dict(), "args": Hostile(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"w\.pth is refused: it asks to run or build posix\.system") as caught:
        load_checkpoint(vim(), path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        load_checkpoint(vim(), path)
    assert not witness.exists()


class _Pickled(nn.Module):
    """Stands for a training script's own class: a whole pickled model, or a configuration object."""


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(_Pickled(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"_Pickled.*save its state_dict\(\) alone"):
        load_checkpoint(vim(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_files_that_are_no_checkpoints_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(vim(), path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(vim(), tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(vim(), tmp_path)
    for content, text in (
        ([1, 2], "holds a list"),
        ({}, "nothing"),
        ({"epoch": 3}, r"epoch \(int\)"),
        ({"model": {"a": torch.zeros(1), "b": "text"}}, r"at model: a \(Tensor\), b \(str\)"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=text):
            load_checkpoint(vim(), tmp_path / "w.pth")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"w{data.draw(st.sampled_from(['.pth', '.safetensors']))}"
    state = {"weight": torch.arange(4.0)}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(vim(), path)


# ---- our own training checkpoints


def write_training_checkpoint(path: Path, **changes: Any) -> Backbone:
    model = vim(drop_path_rate=0.0)
    metadata = training_metadata(model, ["a", "b", "c", "d", "e"]) | changes
    torch.save({METADATA_KEY: metadata, "state_dict": prefixed("model.", model.state_dict()), "epoch": 1}, path)
    return model.eval()


def test_a_training_checkpoint_says_everything(tmp_path: Path) -> None:
    source = write_training_checkpoint(tmp_path / "last.ckpt")
    model, class_names, preprocessing = read_training_checkpoint(tmp_path / "last.ckpt")
    assert class_names == ["a", "b", "c", "d", "e"]
    assert preprocessing == source.preprocessing == model.preprocessing
    assert model.config == source.config
    assert not model.training
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"class_names": ["a"]}, "names 1 classes of 5"),
        ({"config": {"depth": 1, "num_classes": 5}}, "does not fit|contradicts"),
        ({"config": None}, "damaged metadata"),
        ({"preprocessing": {"size": [0, 0]}}, "damaged metadata"),
    ],
)
def test_a_training_checkpoint_that_contradicts_itself(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_training_checkpoint(tmp_path / "last.ckpt", **changes)
    with pytest.raises(CheckpointError, match=text):
        read_training_checkpoint(tmp_path / "last.ckpt")


def test_an_official_file_is_not_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": vim().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="was not written by edgemamba train"):
        read_training_checkpoint(tmp_path / "w.pth")
