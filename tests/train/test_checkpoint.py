"""Checkpoints: every layout is recognised, nothing in a file is run, and what does not fit is refused with its keys."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train import LoadReport, create_model, load_checkpoint
from edgemamba.train.checkpoint import count_classes
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.position import upstream_resize_pos_embed


def vim(**options: Any) -> Backbone:
    return create_model("vim_tiny", **({"img_size": 48, "embed_dim": 16, "depth": 1, "num_classes": 5} | options))


def medmamba() -> Backbone:
    return create_model("medmamba_t", img_size=32, dims=(8, 16), depths=(1, 1), num_classes=5)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def average_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stands for the moving average of some weights."""
    return {key: value + 1 for key, value in state.items()}


OPTIMIZER = {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
ARGUMENTS = argparse.Namespace(model="vim_tiny", lr=1e-3, output_dir=Path("out"), data=None)


def vim_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Vim's main.py writes (DeiT's), and VMamba's apart from its configuration object."""
    return {
        "model": state,
        "optimizer": OPTIMIZER,
        "lr_scheduler": {"last_epoch": 299},
        "epoch": 299,
        "model_ema": average_of(state),
        "scaler": {"scale": 65536.0},
        "args": ARGUMENTS,
    }


def timm_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What timm's saver writes, which made MambaVision's releases."""
    return {
        "epoch": 309,
        "arch": "mamba_vision_T",
        "state_dict": state,
        "optimizer": OPTIMIZER,
        "version": 2,
        "args": ARGUMENTS,
        "state_dict_ema": average_of(state),
        "metric": np.float64(82.3),
    }


def local_mamba_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What LocalMamba's and EfficientVMamba's training scripts write: the average wraps the wrapper of the ranks."""
    return {
        "epoch": 10,
        "model": state,
        "ema_model": prefixed("module.module.", average_of(state)),
        "optimizer": OPTIMIZER,
        "loss_scaler": None,
    }


def mmcv_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What mmcv's EMAHook leaves: averages under the weights' names, and the weights in buffers."""
    buffers = {"ema_" + key.replace(".", "_"): value - 1 for key, value in state.items() if value.is_floating_point()}
    return {"meta": {"epoch": 300, "CLASSES": ("a", "b")}, "state_dict": collections.OrderedDict(state | buffers)}


#: layout -> how it is made of a state dictionary, and what the report calls it.
LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "bare, as MedMamba's": (lambda s: s, "the top level"),
    "ordered": (lambda s: collections.OrderedDict(s), "the top level"),
    "ranks": (lambda s: prefixed("module.", s), "the top level, prefix module."),
    "vim": (vim_file, "model"),
    "mambavision": (timm_file, "state_dict"),
    "mambavision, pre-training": (
        lambda s: {"state_dict": prefixed("module.encoder.", s)},
        "state_dict, prefix module.encoder.",
    ),
    "local_mamba, training": (local_mamba_file, "model"),
    "efficientvmamba, release": (
        lambda s: {"state_dict": prefixed("module.module.", s)},
        "state_dict, prefix module.module.",
    ),
    "hugging face": (lambda s: prefixed("model.", s), "the top level, prefix model."),
    "compiled": (lambda s: {"model": prefixed("_orig_mod.", s)}, "model, prefix _orig_mod."),
    "named": (lambda s: {"model_state_dict": prefixed("backbone.", s)}, "model_state_dict, prefix backbone."),
    "average only": (lambda s: {"model_ema": s}, "model_ema"),
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


# ---- averages


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        (vim_file, "model_ema"),
        (timm_file, "state_dict_ema"),
        (local_mamba_file, "ema_model, prefix module.module."),
        (
            lambda s: {
                "state_dict": s,
                "ema_state_dict": prefixed("module.", average_of(s)) | {"steps": torch.tensor(9)},
            },
            "ema_state_dict, prefix module.",
        ),
        (
            lambda s: {"trained_state_dict": s, "state_dict": prefixed("model.", average_of(s))},
            "state_dict, prefix model.",
        ),
    ],
)
def test_the_average_is_taken_when_asked_for(
    write: Callable[[dict[str, Tensor]], Any], layout: str, tmp_path: Path
) -> None:
    source, target = vim(), vim()
    torch.save(write(source.state_dict()), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth", which="ema")
    assert (report.layout, report.adapted) == (layout, {})
    for key, value in average_of(source.state_dict()).items():
        assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize("which", ["weights", "ema"])
def test_buffers_of_mmcvs_hook_are_left_out(which: Any, tmp_path: Path) -> None:
    source, target = vim(), vim()
    torch.save(mmcv_file(source.state_dict()), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth", which)
    assert f"{len(source.state_dict())} buffers ema_* left out: the weights are the moving average" in str(report)
    assert report.adapted == {}
    assert torch.equal(target.head.weight, source.head.weight)


def test_an_average_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    torch.save({"model": vim().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds no moving average of the weights \(EMA\), only weights at model"):
        load_checkpoint(vim(), tmp_path / "w.pth", which="ema")
    with pytest.raises(CheckpointError, match="which is 'best'"):
        load_checkpoint(vim(), tmp_path / "w.pth", which="best")  # type: ignore[arg-type]


# ---- traps


def test_states_that_share_memory_are_taken_apart(tmp_path: Path) -> None:
    """LocalMamba makes a mixer's A_log tensors over one memory; a file of them must not tie the model's together."""
    source, target = vim(), vim()
    state = source.state_dict()
    shared = torch.randn(2, *state["layers.0.mixer.A_log"].shape)
    state |= {"layers.0.mixer.A_log": shared[0], "layers.0.mixer.A_b_log": shared[1]}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    load_checkpoint(target, tmp_path / "w.pth")
    mixer = target.layers[0].mixer
    assert torch.equal(mixer.A_log, shared[0])
    assert torch.equal(mixer.A_b_log, shared[1])
    with torch.no_grad():
        mixer.A_log.zero_()
    assert torch.equal(mixer.A_b_log, shared[1])


def test_counters_of_profilers_and_averages_are_left_out(tmp_path: Path) -> None:
    source, target = vim(), vim()
    counters = {"total_ops": torch.tensor(1.0), "layers.0.total_params": torch.tensor(2.0)}
    wrapped = prefixed("module.", source.state_dict() | counters) | {"n_averaged": torch.tensor(3)}
    torch.save(wrapped, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.layout == "the top level, prefix module."
    assert "3 counters left out" in str(report)
    assert torch.equal(target.head.weight, source.head.weight)


def test_tensors_of_integers_are_no_weights(tmp_path: Path) -> None:
    state = vim().state_dict()
    state["norm_f.weight"] = state["norm_f.weight"].to(torch.int8)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"1 of another kind \(norm_f.weight torch.int8 instead of torch.float32\)"
    ):
        load_checkpoint(vim(), tmp_path / "w.pth")


# ---- what is adapted


@pytest.mark.parametrize("hollow", [Tensor.to_sparse, lambda value: value.to("meta")])
def test_tensors_without_values_leave_the_model_as_it_was(hollow: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    source, target = vim(), vim()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(source.state_dict() | {"head.weight": hollow(source.head.weight.detach())}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"1 sparse tensors or tensors without values \(head\.weight\)"):
        load_checkpoint(target, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


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
    assert (report.matched, report.adapted) == (len(target.state_dict()), {})
    assert "head: 2 tensors left out, the model was made without" in str(report)


def test_positions_are_resized_as_in_fine_tuning(tmp_path: Path) -> None:
    source, target = vim(), vim(img_size=(64, 96))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.adapted["pos_embed"] == "resized from a grid of 3x3 to 4x6 (bicubic), for fine-tuning"
    resized = upstream_resize_pos_embed(source.pos_embed.detach(), (4, 6), 1)
    assert torch.equal(target.pos_embed, resized)
    # Upstream's rule keeps row 0 although the class token is in the middle.
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])


def test_both_class_tokens_keep_their_rows(tmp_path: Path) -> None:
    source, target = vim(cls_token="double"), vim(cls_token="double", img_size=(64, 96))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_checkpoint(target, tmp_path / "w.pth")
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(target.pos_embed[:, -1], source.pos_embed[:, -1])


def test_rotation_tables_are_resized(tmp_path: Path) -> None:
    source, target = vim(rope=True), vim(rope=True, img_size=64)
    exact = target.rope.freqs_cos.clone()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert {"rope.freqs_cos", "rope.freqs_sin", "pos_embed"} == set(report.adapted)
    assert not torch.equal(target.rope.freqs_cos, exact)
    assert (target.rope.freqs_cos - exact).abs().mean() < 0.5


def test_features_only_takes_what_it_has_kept(tmp_path: Path) -> None:
    source = vim(depth=3)
    target = create_model("vim_tiny", features_only=True, out_indices=(1,), img_size=48, embed_dim=16, depth=3)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert (report.matched, report.adapted) == (len(target.state_dict()), {})
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        expected = source.eval().forward_intermediates(x, (1,), intermediates_only=True)[0]
        torch.testing.assert_close(target.eval()(x)[0], expected)


def test_a_module_of_another_making_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="Linear is no model of edgemamba's: make it with create_model"):
        load_checkpoint(nn.Linear(2, 2), tmp_path / "w.pth")


def test_classes_are_counted_where_the_classifier_is() -> None:
    for name, model in (("vim_tiny", vim(num_classes=9)), ("medmamba_t", medmamba())):
        content = {"model": prefixed("module.", model.state_dict())}
        assert count_classes(content, Path("w.pth"), name) == model.num_classes
    assert count_classes({"model": {"norm_f.weight": torch.zeros(1)}}, Path("w.pth"), "vim_tiny") is None


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
