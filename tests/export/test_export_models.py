"""Real backbones, small: what their graphs hold, and that stock ONNX Runtime says what PyTorch says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from edgemamba.export import export
from edgemamba.export.layers import recorded_modules
from edgemamba.runtime import load
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.errors import ExportError
from edgemamba.train import create_model

pytest.importorskip("onnxruntime")

DEPTH = 3
SIZE = (64, 48)
SMALL = {
    "vim_tiny": {"embed_dim": 32, "depth": DEPTH, "img_size": SIZE},
    "medmamba_t": {"dims": (16, 32), "depths": (2, 1), "img_size": SIZE},
}
SCANS = {"vim_tiny": DEPTH, "medmamba_t": 3}
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


def model(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    built = create_model(name, num_classes=7, **{**SMALL[name], **options}).eval()
    with torch.no_grad():  # logits as large as a trained model's, and batch norms that do something
        built.head.weight *= 30
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return built


def expected(built: nn.Module, frames: np.ndarray) -> np.ndarray:
    recipe = built.preprocessing
    x = (frames / 255.0 - recipe.mean) / recipe.std
    with torch.no_grad():
        return built.float()(torch.from_numpy(x).float().permute(0, 3, 1, 2)).numpy()


def frames(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.fixture(scope="module", params=[(name, precision) for name in SMALL for precision in TOLERANCE], ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Bundle]:
    name, precision = request.param
    return name, precision, export(model(name), tmp_path_factory.mktemp("models") / name, precision=precision)


def test_every_backend_says_what_pytorch_says_at_every_batch(exported: tuple[str, str, Bundle]) -> None:
    name, precision, bundle = exported
    built = model(name)
    for backend in ("ort-cpu", "ort-function"):
        with load(bundle, backend) as engine:
            for count in (1, 3):
                want = expected(built, frames(count))
                got = engine.infer(frames(count))["logits"]
                assert got.dtype == np.float32
                assert (np.abs(got - want) <= TOLERANCE[precision] * np.maximum(1, np.abs(want))).all()


def test_one_scan_per_mixer_and_one_function(exported: tuple[str, str, Bundle]) -> None:
    name, precision, bundle = exported
    graph = onnx.load(bundle.file("model.onnx"))
    onnx.checker.check_model(graph, full_check=True)
    scans = [node for node in graph.graph.node if node.op_type == "SelectiveScan"]
    assert len(scans) == SCANS[name]
    assert [(function.domain, function.name) for function in graph.functions] == [("edgemamba", "SelectiveScan")]
    standard = {entry.version for entry in graph.functions[0].opset_import if entry.domain == ""}
    assert standard == {entry.version for entry in graph.opset_import if entry.domain == ""} == {20}
    values = TensorProto.FLOAT if precision == "fp32" else TensorProto.FLOAT16
    constants = {entry.name: entry for entry in graph.graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    for node in scans:
        assert node.domain == "edgemamba"
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert attributes == {"delta_softplus": 1, "plugin_version": b"1", "plugin_namespace": b"edgemamba"}
        u, delta, a, b, c, d, bias, order = node.input
        assert {types[value] for value in (u, delta, b, c, node.output[0])} == {values}
        assert {constants[value].data_type for value in (a, d, bias)} == {TensorProto.FLOAT}
        assert constants[order].data_type == TensorProto.INT32
        assert (numpy_helper.to_array(constants[a]) < 0).all()


def test_nothing_is_left_to_fold_and_shapes_are_static(exported: tuple[str, str, Bundle]) -> None:
    graph = onnx.load(exported[2].file("model.onnx")).graph
    kinds = Counter(node.op_type for node in graph.node)
    for kind in ("Constant", "Identity", "Exp", "Neg", "Range", "Gather_", "If", "Loop", "Dropout", "SequenceAt"):
        assert kinds[kind] == 0, kinds
    constants = {entry.name for entry in graph.initializer}
    for node in graph.node:
        assert not set(node.input) - {""} <= constants, f"{node.name} depends on constants only"


def test_modules_are_noted_in_order(exported: tuple[str, str, Bundle]) -> None:
    name, _, bundle = exported
    modules = list(recorded_modules(onnx.load(bundle.file("model.onnx"))))
    blocks = "layers.{}.mixer.x_proj" if name == "vim_tiny" else "layers.0.blocks.{}.self_attention.out_proj"
    found = [modules.index(blocks.format(index)) for index in range(2)]
    assert found == sorted(found)
    assert "head" in modules


def test_no_path_of_this_machine(exported: tuple[str, str, Bundle]) -> None:
    data = exported[2].file("model.onnx").read_bytes()
    for trace in (str(Path(torch.__file__).parent.parent), str(Path(__file__).parents[2]), "stack_trace", ".py"):
        assert trace.encode() not in data


@pytest.mark.parametrize("name", SMALL)
def test_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    first, second = (export(model(name), tmp_path / folder, weights=False) for folder in "ab")
    assert first.manifest.files == second.manifest.files


def test_medmamba_takes_any_height_and_width(tmp_path: Path) -> None:
    built = model("medmamba_t")
    bundle = export(built, tmp_path / "b", dynamic=("batch", "height", "width"))
    for size in (SIZE, (32, 32), (70, 90)):
        pixels = frames(2, size)
        want = expected(built, pixels)
        for backend in ("ort-cpu", "ort-function"):
            with load(bundle, backend) as engine:
                np.testing.assert_allclose(engine.infer(pixels)["logits"], want, atol=1e-4, rtol=1e-4)


def test_vim_with_a_fixed_position_embedding_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="vim_tiny cannot be exported") as caught:
        export(model("vim_tiny"), tmp_path / "b", image_size=80)
    assert "80" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_sized_vim_tiny_has_24_scans(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export(create_model("vim_tiny"), tmp_path / "b", weights=False)
    graph = onnx.load(bundle.file("model.onnx")).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["SelectiveScan"] == 24
    orders = {node.input[7] for node in graph.node if node.op_type == "SelectiveScan"}
    assert len(orders) == 1  # one order, shared by all layers
    assert bundle.file("model.onnx").stat().st_size < 33e6  # 7.15 M parameters
