"""SegMamba against the official code (``--golden``, folder ``segmamba``), and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import golden_folder
from golden_capture.segmamba import capture
from safetensors.torch import load_file
from torch import Tensor

from edgemamba.runtime.errors import CheckpointError, ModelError
from edgemamba.train import create_model, list_models, load_checkpoint
from edgemamba.train.models.segmamba import SegMamba, SegMambaConfig, check_size, config_from_upstream, recognise
from edgemamba.train.models.segmamba_mixer import TriOrientedMixer
from edgemamba.train.scan_orders import scan_order

TINY = SegMambaConfig(
    in_chans=2, num_classes=3, depths=(1, 1, 1, 1), feat_size=(4, 6, 8, 8), hidden_size=8, img_size=(32, 32, 32)
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = golden_folder(metafunc.config)
    sidecars = {path: json.loads(path.read_text()) for path in sorted((folder / "segmamba").glob("*.json"))}
    if "network" in metafunc.fixturenames:
        paths = [path for path, sidecar in sidecars.items() if "cases" not in sidecar]
        metafunc.parametrize("network", paths, ids=[path.stem for path in paths])
    if "mixer" in metafunc.fixturenames:
        mixers = [(path, case) for path, sidecar in sidecars.items() for case in sidecar.get("cases", ())]
        metafunc.parametrize("mixer", mixers, ids=[f"{path.stem}-{case['case']}" for path, case in mixers])
    if "keys" in metafunc.fixturenames:
        files = sorted((folder / "keys").glob("segmamba_*.json"))
        metafunc.parametrize("keys", files, ids=[path.stem for path in files])


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


TENSORS = re.compile(r"state/.+|input|logits|logits_fp64(_stride\d+)?|feature/.+")


def test_network_equals_upstream(network: Path) -> None:
    sidecar, tensors = read(network)
    unknown = [key for key in tensors if not TENSORS.fullmatch(key)]
    assert not unknown, f"tensors that this test compares with nothing: {', '.join(unknown)}"
    model = SegMamba(config_from_upstream(sidecar["constructor"])).eval()
    model.load_state_dict(below(tensors, "state/"), strict=True)
    features: dict[str, Tensor] = {}
    capture(model, features)
    with torch.inference_mode():
        logits = model(tensors["input"])
    tolerances = sidecar["suggested_abs_tolerance"]
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=tolerances["fp32_vs_logits"])
    for name, expected in below(tensors, "feature/").items():
        atol = 1e-4 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(features[name], expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")

    key = next(key for key in tensors if key.startswith("logits_fp64"))
    stride = int((re.search(r"stride(\d+)", key) or ["", "1"])[1])
    with torch.inference_mode():
        logits = model.double()(tensors["input"].double())
    strided = logits[:, :, ::stride, ::stride, ::stride]
    torch.testing.assert_close(strided, tensors[key], rtol=0, atol=tolerances["fp64"])


def test_mixer_equals_upstream(mixer: tuple[Path, dict[str, Any]]) -> None:
    path, case = mixer
    tensors, i = load_file(path.with_suffix(".safetensors")), case["case"]
    options = dict(case["constructor"])
    assert options.pop("bimamba_type") == "v3"
    order = scan_order(f"slices{options.pop('nslices')}", (1, 1, case["L"]))
    module = TriOrientedMixer(options.pop("d_model"), **options).eval()
    module.load_state_dict(below(tensors, f"case{i}/state/"), strict=True)
    x = tensors[f"case{i}/input"]
    with torch.inference_mode():
        expected = tensors[f"case{i}/out"]
        atol = 2e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(module(x, order), expected, rtol=0, atol=atol)
        torch.testing.assert_close(module.double()(x.double(), order), tensors[f"case{i}/out64"], rtol=0, atol=1e-9)


def test_keys_and_shapes_equal_upstream(keys: Path) -> None:
    expected = json.loads(keys.read_text())
    with torch.device("meta"):
        options = expected["constructor_kwargs"]  # words, where upstream's defaults are meant
        model = SegMamba(config_from_upstream(options if isinstance(options, dict) else {}))
    table = expected.get("state_dict", expected.get("keys"))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: value["shape"] for key, value in table.items()}
    assert sum(p.numel() for p in model.parameters()) == expected["total_params"]
    assert recognise(shapes)


@pytest.mark.parametrize("size", [(16, 16, 16), (48, 48, 48), (33, 32, 32), (32, 32)])
def test_sizes_whose_stages_cannot_be_divided_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="x".join(map(str, size))):
        check_size(size)
    if len(size) == 3:
        with torch.inference_mode(), pytest.raises(ModelError):
            SegMamba(TINY).eval()(torch.zeros(1, 2, *size))


@pytest.mark.parametrize("size", [(32, 32, 32), (32, 64, 48), (16, 32, 64), (128, 128, 128)])
def test_sizes_that_fit_give_every_stage_a_walk(size: tuple[int, int, int]) -> None:
    check_size(size)
    for stage, slices in enumerate((64, 32, 16, 8)):
        order = scan_order(f"slices{slices}", tuple(side // 2 ** (stage + 1) for side in size))
        assert order.shape[0] == 3


@pytest.mark.parametrize(
    "wrong",
    [{"depths": (1, 1, 1)}, {"feat_size": (4, 4, 4, 0)}, {"num_classes": -1}, {"img_size": (48, 48, 48)}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_make_no_model_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        SegMambaConfig(**wrong)


def test_training_reaches_every_parameter_with_and_without_checkpointing() -> None:
    torch.manual_seed(0)
    model, x = SegMamba(TINY), torch.randn(1, 2, 32, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == {name for name, _ in model.named_parameters()}
    # Instance norms take away what a bias before them adds; everything else must move.
    dead = [name for name, g in gradients[0].items() if g.abs().max() == 0 and not name.endswith("bias")]
    assert not dead
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_exports_at_a_fixed_size_with_one_scan_a_layer() -> None:
    model = SegMamba(TINY).eval()
    program = torch.export.export(model, (torch.zeros(1, 2, 32, 32, 32),), strict=False)
    scans = [node for node in program.graph.nodes if "selective_scan" in str(node.target)]
    assert len(scans) == sum(TINY.depths)


SMALL = {"depths": (1, 1, 1, 1), "feat_size": (4, 6, 8, 8), "hidden_size": 8, "img_size": 32}


def test_it_is_made_by_name_and_describes_its_input() -> None:
    assert list_models("seg*") == list_models(task="segmentation") == ["segmamba"]
    assert "segmamba" not in list_models(task="classification")
    model = create_model("segmamba", num_classes=4, in_chans=4, **SMALL)
    assert (model.task, model.model_name, model.num_classes) == ("segmentation", "segmamba", 4)
    assert model.volume is not None
    assert (model.volume.modalities, model.volume.patch) == (("t2w", "t2f", "t1n", "t1c"), (32, 32, 32))
    assert model(torch.zeros(1, 4, 32, 32, 32)).shape == (1, 4, 32, 32, 32)
    with pytest.raises(ModelError, match="segmamba is for segmentation"):
        create_model("segmamba", features_only=True)
    with pytest.raises(ModelError, match="no option 'image_size'"):
        create_model("segmamba", image_size=64)


@pytest.mark.parametrize("container", ["plain", "module"])
def test_upstreams_files_are_read(tmp_path: Path, container: str) -> None:
    source = create_model("segmamba", **SMALL)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save(state if container == "plain" else {"model": state}, tmp_path / "w.pt")
    target = create_model("segmamba", **SMALL)
    report = load_checkpoint(target, tmp_path / "w.pt")
    assert report.adapted == {}
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())

    other = create_model("segmamba", num_classes=2, **SMALL)
    before = other.out.conv.conv.weight.clone()
    assert set(load_checkpoint(other, tmp_path / "w.pt").adapted) == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert torch.equal(other.out.conv.conv.weight, before)

    with pytest.raises(CheckpointError, match=r"it looks like a SegMamba checkpoint \(segmamba\)"):
        load_checkpoint(create_model("medmamba_t", dims=(8, 16), depths=(1, 1)), tmp_path / "w.pt")
