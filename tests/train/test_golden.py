"""Models against the official code: every case of a folder of golden vectors, and every official variant's keys.

The folder is ``tests/golden`` or that of ``pytest --golden``. A case is ``<family>/<case>.json`` beside a ``.safetensors`` of the
same name; the sidecar holds upstream's configuration and the tolerances. Nothing here knows a case by name.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import golden_folder
from safetensors.torch import load_file
from torch import Tensor, nn

from edgemamba.train.models.position import upstream_resize_pos_embed
from edgemamba.train.models.ss2d import SS2D
from edgemamba.train.registry import (
    ModelEntry,
    create_model,
    list_models,
    model_entry,
    model_from_upstream_config,
)
from edgemamba.train.scan_orders import scan_order

# Segmentation of volumes is no classifier: test_segmamba.py runs its cases.
ELSEWHERE = ("segmamba",)
NOT_FAMILIES = ("keys", "ops", *ELSEWHERE)
# What a case may hold beside its state, each compared by a test below.
POSITIONS = r"(?:.*/)?pos_embed_\w+"
TENSORS = re.compile(rf"input|(?:logits|out/?\d)(_fp64)?|out(_fp64)/\d|feature(_fp64)?/.+|{POSITIONS}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = golden_folder(metafunc.config)
    if "case" in metafunc.fixturenames:
        files = sorted(folder.glob("*/*.safetensors"))
        if not files:
            raise pytest.UsageError(
                f"--golden {folder} holds no case: <family>/<case>.safetensors with a .json beside it"
            )
        cases = [path for path in files if path.parent.name not in NOT_FAMILIES]
        metafunc.parametrize("case", cases, ids=[f"{path.parent.name}/{path.stem}" for path in cases])
    if "keys" in metafunc.fixturenames:
        files = sorted((folder / "keys").glob("*.json"))
        metafunc.parametrize("keys", files, ids=[path.stem for path in files])
    if "ss2d" in metafunc.fixturenames:
        files = sorted((folder / "ops").glob("op_medmamba_ss2d_*.safetensors"))
        metafunc.parametrize("ss2d", files, ids=[path.stem for path in files])


def read_case(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Sidecar, tensors, and the state among them."""
    if not path.with_suffix(".json").is_file():
        pytest.fail(f"{path.name} has no sidecar {path.with_suffix('.json').name} beside it", pytrace=False)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    tensors = load_file(path)
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return sidecar, tensors, state


def upstream_config(sidecar: dict[str, Any]) -> dict[str, Any]:
    """The constructor's keywords, with the class they were given to under ``cls``."""
    config = dict(sidecar.get("config", sidecar.get("constructor", {})))
    named = sidecar.get("upstream_class", sidecar.get("kind"))
    return {"cls": named, **config} if named else config


def build(family: str, sidecar: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    model = model_from_upstream_config(family, upstream_config(sidecar)).eval()
    model.load_state_dict(state, strict=True)
    return model


def atol(sidecar: dict[str, Any], dtype: str) -> float:
    """The sidecar's tolerance for outputs in a dtype, in any of the words that the sidecars use for it."""
    if dtype == "fp64":
        return float(sidecar.get("suggested_atol_fp64", 1e-9))
    if "suggested_abs_tolerance" in sidecar:
        return float(sidecar["suggested_abs_tolerance"]["fp32_vs_logits"])
    # Cases of dense backbones that state none: that of their family's classifiers.
    return float(sidecar.get("suggested_atol", sidecar.get("suggested_atol_fp32", 2e-5)))


def expected_outputs(tensors: dict[str, Tensor], suffix: str = "") -> dict[str, Tensor]:
    """Output name -> tensor: "logits", or "0".."3" of a dense backbone; those stored in float64 with ``suffix="_fp64"``."""
    if f"logits{suffix}" in tensors:
        return {"logits": tensors[f"logits{suffix}"]}
    named = {re.fullmatch(rf"out(?:{suffix}/(\d)|(\d){suffix})", key): value for key, value in tensors.items()}
    return {str(match[1] or match[2]): value for match, value in named.items() if match}


def outputs_of(model: nn.Module, x: Tensor, family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and intermediate features, by the names that cases have for them."""
    features: dict[str, Tensor] = {}
    importlib.import_module(f"golden_capture.{family}").capture(model, features)
    with torch.inference_mode():
        y = model(x)
    outputs = {"logits": y} if isinstance(y, Tensor) else dict(zip(map(str, model.out_indices), y, strict=True))
    return outputs, features


def expected_features(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Feature name -> tensor; those stored in float64 have a prefix of their own."""
    named = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {name: value for name, value in named.items() if not re.fullmatch(POSITIONS, name)}


def compare(name: str, value: Tensor | None, expected: Tensor, tolerance: float) -> None:
    """Within a tolerance relative to the largest expected value, where that is above one."""
    if value is None:
        pytest.fail(f"{name} is in the case, and not among what was captured: see tests/golden_capture", pytrace=False)
    scaled = tolerance * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(value, expected, rtol=0, atol=scaled, msg=lambda text: f"{name}: {text}")


def test_every_tensor_of_a_case_is_compared(case: Path) -> None:
    sidecar, tensors, state = read_case(case)
    build(case.parent.name, sidecar, state)
    unknown = [key for key in tensors if not key.startswith("state/") and not TENSORS.fullmatch(key)]
    assert not unknown, f"tensors that no test here compares with anything: {', '.join(unknown)}"
    assert "input" in tensors
    assert expected_outputs(tensors), "the case holds no output in float32"
    assert expected_outputs(tensors, "_fp64"), "the case holds no output in float64"


def test_float64_equals_upstream(case: Path) -> None:
    sidecar, tensors, state = read_case(case)
    family = case.parent.name
    model = build(family, sidecar, state).double()
    outputs, features = outputs_of(model, tensors["input"].double(), family)
    for name, value in expected_outputs(tensors, "_fp64").items():
        torch.testing.assert_close(
            outputs[name], value, rtol=0, atol=atol(sidecar, "fp64"), msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, value in expected_features(tensors, "feature_fp64/").items():
        compare(name, features.get(name), value, atol(sidecar, "fp64"))


def test_float32_equals_upstream_with_features(case: Path) -> None:
    sidecar, tensors, state = read_case(case)
    family = case.parent.name
    model = build(family, sidecar, state)
    tolerance = atol(sidecar, "fp32")
    outputs, features = outputs_of(model, tensors["input"], family)
    expected = expected_outputs(tensors)
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        if name == "logits":  # whose tolerance is absolute
            torch.testing.assert_close(outputs[name], value, rtol=0, atol=tolerance)
        else:
            compare(name, outputs[name], value, tolerance)
    for name, value in expected_features(tensors, "feature/").items():
        compare(name, features.get(name), value, tolerance)


def test_fine_tuning_resizes_positions_as_upstream(case: Path) -> None:
    sidecar, tensors, state = read_case(case)
    extra = {key.rpartition("/")[2]: value for key, value in tensors.items()}
    if "pos_embed_src" not in extra:
        pytest.skip("holds no resized position embedding")
    model = build(case.parent.name, sidecar, state)
    source, expected = extra["pos_embed_src"], extra["pos_embed_resized"]
    tokens = expected.shape[1] - model.config.grid[0] * model.config.grid[1]
    resized = upstream_resize_pos_embed(source, model.config.grid, tokens)
    torch.testing.assert_close(resized, expected, rtol=1e-5, atol=1e-6)


def test_ss2d_equals_upstream(ss2d: Path) -> None:
    sidecar, tensors, state = read_case(ss2d)
    config = sidecar["config"]
    module = SS2D(config["d_model"], config["d_state"], config["expand"]).eval()
    module.load_state_dict(state, strict=True)
    order = scan_order("cross", (sidecar["H"], sidecar["W"]))
    with torch.inference_mode():
        single = module(tensors["input"], order)
        double = module.double()(tensors["input"].double(), order)
    torch.testing.assert_close(double, tensors["output_fp64"], rtol=0, atol=1e-9)
    torch.testing.assert_close(single, tensors["output"], rtol=0, atol=max(1e-5, 10 * sidecar["max_abs_fp32_vs_fp64"]))


def entry_of(variant: str) -> ModelEntry | None:
    """The registered model that a variant's name is an alias of."""
    return next((model_entry(name) for name in list_models() if variant in model_entry(name).aliases), None)


def test_keys_and_shapes_equal_upstream(keys: Path) -> None:
    expected = json.loads(keys.read_text())
    # Two spellings of the same file.
    variant, table = expected.get("variant", expected.get("model")), expected.get("state_dict", expected.get("keys"))
    if variant is None or table is None:
        pytest.skip(f"{keys.name} is not a list of keys")
    if "alias" in expected:
        pytest.skip(f"{keys.name} lists former names; test_vmamba.py reads it")
    entry = entry_of(variant)
    if keys.stem.startswith(ELSEWHERE):
        pytest.skip(f"{keys.stem} is for test_segmamba.py")
    assert entry is not None, f"{variant} is neither a model nor an alias of one"
    with torch.device("meta"):
        model = create_model(entry.name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: value["shape"] for key, value in table.items()}
    parameters = dict(model.named_parameters())
    kinds = {key: value["kind"] == "parameter" for key, value in table.items() if "kind" in value}
    if "param_keys" in expected:
        kinds = {key: key in set(expected["param_keys"]) for key in table}
    assert all((key in parameters) == is_parameter for key, is_parameter in kinds.items())
    assert sum(p.numel() for p in parameters.values()) == expected["total_params"] == entry.params
