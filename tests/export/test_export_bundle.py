"""What `export` writes, refuses and leaves behind, on a small model without the selective scan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from edgemamba.export import export, exporting, verify, writing
from edgemamba.export.parity import Tolerance
from edgemamba.runtime.bundle import MODEL, MODEL_DATA, Bundle
from edgemamba.runtime.errors import BundleError, ExportError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train import create_model

onnxruntime = pytest.importorskip("onnxruntime")


class Plain(nn.Module):
    """Convolution, batch norm, layer norm, a residual branch whose product is halved, mean pooling, classifier."""

    model_name = "plain"

    def __init__(self, **preprocessing: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.preprocessing = Preprocessing(**{"size": (16, 24), **preprocessing})
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.bn = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).flatten(2).transpose(1, 2)
        x = x + self.fc(torch.sigmoid(self.norm(x)) / 2)
        return self.head(self.dropout(x.mean(1)))


class PreNorm(Plain):
    """A batch norm before a padded convolution, into which it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.bn(x)).flatten(2).transpose(1, 2)
        return self.head(self.fc(x).mean(1))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(Plain(), tmp_path_factory.mktemp("export") / "plain", class_names=list("abcde"))


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.file("model.onnx"))


def run(bundle: Bundle, frames: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(bundle.file("model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"frames": frames})[0]


def frames(count: int, dtype: str = "uint8", size: tuple[int, int] = (16, 24)) -> np.ndarray:
    unit = np.random.default_rng(1).random((count, *size, 3))
    return (unit * {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]).astype(dtype)


def expected(model: Plain, pixels: np.ndarray) -> np.ndarray:
    """The textbook preprocessing, in float64, then the model."""
    full = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[str(pixels.dtype)]
    recipe = model.preprocessing
    x = (pixels.astype(np.float64) / full - recipe.mean) / recipe.std
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_preprocessing_is_inside_the_graph(tmp_path: Path, dtype: str) -> None:
    model = Plain(dtype=dtype, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = frames(3, dtype)
    np.testing.assert_allclose(run(export(model, tmp_path / "b"), pixels), expected(model, pixels), atol=2e-6)


def test_the_manifest_states_the_graph(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.input.shape == ("batch", 16, 24, 3)
    assert manifest.outputs[0].shape == ("batch", 5)
    assert manifest.class_names == tuple("abcde")
    assert set(manifest.files) == {"model.onnx", "weights.safetensors"}
    graph = graph_of(bundle)
    assert [value.name for value in graph.graph.input] == [manifest.input.name]
    assert [value.name for value in graph.graph.output] == [manifest.outputs[0].name]
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == manifest.opset == 20
    assert {"torch", "onnx", "onnxscript", "edgemamba"} <= set(manifest.tool_versions)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_batch_is_dynamic(bundle: Bundle, count: int) -> None:
    pixels = frames(count)
    np.testing.assert_allclose(run(bundle, pixels), expected(Plain(), pixels), atol=2e-6)


def test_a_fixed_batch_and_dynamic_height_and_width(tmp_path: Path) -> None:
    fixed = export(Plain(), tmp_path / "fixed", dynamic=())
    assert fixed.manifest.input.shape == (1, 16, 24, 3)
    free = export(Plain(), tmp_path / "free", dynamic=("batch", "height", "width"))
    assert free.manifest.input.shape == ("batch", "height", "width", 3)
    pixels = frames(2, size=(36, 20))
    np.testing.assert_allclose(run(free, pixels), expected(Plain(), pixels), atol=2e-6)


def test_the_same_model_gives_the_same_bytes_and_no_path_of_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    again = export(Plain(), tmp_path / "again")
    assert again.manifest.files["model.onnx"] == bundle.manifest.files["model.onnx"]
    data = bundle.file("model.onnx").read_bytes()
    for trace in (
        str(Path(__file__).parent),
        str(Path(torch.__file__).parent.parent),
        str(Path.home()),
        "stack_trace",
        ".py",
    ):
        assert trace.encode() not in data
    assert str(tmp_path) not in (tmp_path / "again" / "manifest.json").read_text()


def test_the_callers_model_is_left_alone(tmp_path: Path) -> None:
    model = Plain().half().train()
    export(model, tmp_path / "b", precision="fp16")
    assert model.training
    assert model.head.weight.dtype == torch.float16
    assert model.head.weight.requires_grad


def test_nodes_carry_module_names_and_proved_outputs(bundle: Bundle) -> None:
    nodes = graph_of(bundle).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    noted = {entry.value: node.name for node in nodes for entry in node.metadata_props}
    assert noted["norm"] == "norm/LayerNormalization"
    assert noted["fc"] == "fc/MatMul"
    assert {entry.key for node in nodes for entry in node.metadata_props} == {"edgemamba.module"}


def test_a_halving_is_merged_into_the_next_weight(bundle: Bundle) -> None:
    graph = graph_of(bundle).graph
    assert "Div" not in [node.op_type for node in graph.node]
    product = next(node for node in graph.node if node.name == "fc/MatMul")
    weight = next(entry for entry in graph.initializer if entry.name == product.input[1])
    np.testing.assert_array_equal(numpy_helper.to_array(weight), Plain().fc.weight.detach().numpy().T / 2)


def test_fp16_keeps_preprocessing_norms_and_reductions_in_float32(tmp_path: Path) -> None:
    half = export(Plain(), tmp_path / "half", precision="fp16")
    graph = graph_of(half).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    of = {node.op_type: types[node.output[0]] for node in graph.node}
    assert of["Conv"] == of["MatMul"] == of["Sigmoid"] == TensorProto.FLOAT16
    assert of["LayerNormalization"] == of["ReduceMean"] == TensorProto.FLOAT
    assert types["logits"] == TensorProto.FLOAT
    stored = {entry.data_type for entry in graph.initializer if np.prod(entry.dims) > 16}
    assert stored == {TensorProto.FLOAT16}
    pixels = frames(4)
    np.testing.assert_allclose(run(half, pixels), expected(Plain(), pixels), atol=2e-2)


def test_fp16_takes_batch_norms_whose_statistics_do_not_fit(tmp_path: Path) -> None:
    model = PreNorm()
    with torch.no_grad():
        model.bn.running_mean.fill_(70000.0)
        model.bn.running_var.fill_(1e10)
        model.bn.weight.fill_(1e5)
    half = export(model, tmp_path / "half", precision="fp16")
    assert "BatchNormalization" not in [node.op_type for node in graph_of(half).graph.node]
    pixels = frames(2)
    np.testing.assert_allclose(run(half, pixels), expected(model, pixels), atol=2e-2)


def test_fp16_refuses_weights_beyond_its_range(tmp_path: Path) -> None:
    model = Plain()
    with torch.no_grad():
        model.fc.weight[0, 0] = 4e5
    with pytest.raises(ExportError, match="beyond float16"):
        export(model, tmp_path / "b", precision="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [18, 21, 24])
def test_other_opsets(tmp_path: Path, opset: int) -> None:
    bundle = export(Plain(), tmp_path / "b", opset=opset)
    pixels = frames(2)
    np.testing.assert_allclose(run(bundle, pixels), expected(Plain(), pixels), atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17"),
        ({"precision": "int8"}, "int8"),
        ({"dynamic": ("depth",)}, "depth"),
        ({"image_size": 0}, "image size"),
        ({"class_names": ["a"]}, "1 class names were given for 5"),
        ({"image_size": 2}, "cannot be exported at 2x2"),
        ({"image_size": 100_000}, "more than 67108864 pixels"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export(Plain(), tmp_path / "b", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Linear has no preprocessing"):
        export(nn.Linear(2, 2), tmp_path / "b")


def test_weights_that_give_nan_are_refused(tmp_path: Path) -> None:
    model = Plain()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export(model, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_only_a_bundle_is_overwritten_and_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "b"
    first = export(Plain(), out)
    (out / "engines").mkdir()
    with pytest.raises(ExportError, match="force"):
        export(Plain(), out)
    second = export(Plain(), out, weights=False, force=True)
    assert not (out / "engines").exists()  # engines of the old graph
    assert set(second.manifest.files) == {"model.onnx"}
    assert first.manifest.files["model.onnx"] == second.manifest.files["model.onnx"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.png").touch()
    for force in (False, True):
        with pytest.raises(ExportError, match="no bundle"):
            export(Plain(), other, force=force)
        with pytest.raises(ExportError, match="is a file"):
            export(Plain(), other / "a.png", force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "photos"]


def test_where_nothing_can_be_written_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "to_onnx", lambda *arguments: pytest.fail("the model was traced"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "b", Path("/proc/b")):
        with pytest.raises(ExportError, match=f"{out} cannot be written"):
            export(Plain(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert export(Plain(), tmp_path / "b").path == tmp_path / "b"


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, ExportError)])
def test_an_interrupted_export_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], seen: type[BaseException]
) -> None:
    out = tmp_path / "b"
    before = export(Plain(), out).manifest

    def interrupted(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(writing, "save_weights", interrupted)
    with pytest.raises(seen):
        export(Plain(), out, force=True)
    assert Bundle.load(out).manifest == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_source_is_recorded_without_its_folder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "private" / "weights.pth"
    checkpoint.parent.mkdir()
    torch.save({"a": torch.ones(1)}, checkpoint)
    bundle = export(Plain(), tmp_path / "b", source=checkpoint)
    assert bundle.manifest.source is not None
    assert bundle.manifest.source.file == "weights.pth"
    assert "private" not in (tmp_path / "b" / "manifest.json").read_text()


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    bundle = export(Plain(), tmp_path / "b")
    path = tmp_path / "b" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        Bundle.load(bundle.path)


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    export(Plain(), tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["../secret"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="outside"):
        Bundle.load(tmp_path / "b")


def test_weights_too_large_for_one_file_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SINGLE_FILE_LIMIT", 10_000)  # really 2 GiB
    bundle = export(create_model("vim_tiny", num_classes=5, img_size=32, depth=2), tmp_path / "large")
    data = bundle.path / MODEL_DATA
    assert data.stat().st_size > 4 * 100_000
    assert (bundle.path / MODEL).stat().st_size < data.stat().st_size / 4
    assert MODEL_DATA in bundle.manifest.files
    report = verify(bundle, samples=2, write=False)
    assert report.passed
    # The search for a diverging layer edits the graph, and must find the weights all the same.
    strict = verify(bundle, samples=1, write=False, tolerance=Tolerance(atol=1e-12, rtol=1e-12))
    assert not any(backend.error for backend in strict.backends)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=MODEL_DATA):
        Bundle.load(bundle.path)
