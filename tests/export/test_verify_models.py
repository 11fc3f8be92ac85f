"""`verify` on real backbones: passing, failing, and naming the layer that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgemamba.export import export, probing, verification, verify
from edgemamba.export.parity import ParityReport, Tolerance
from edgemamba.runtime import engines
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.engines.ort import make_session
from edgemamba.runtime.errors import BundleError, CheckpointError, EdgeMambaError, EngineError, ExportError, SourceError
from edgemamba.train import create_model

data = pytest.importorskip("skimage.data")

SMALL = {
    "vim_tiny": {"embed_dim": 32, "depth": 6, "img_size": 64},
    "medmamba_t": {"dims": (16, 32), "depths": (2, 2), "img_size": 48},
}


def small_model(name: str) -> torch.nn.Module:
    """A backbone whose mixers and logits say as much as a trained one's; fresh ones give next to nothing."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, **SMALL[name])
    with torch.no_grad():
        model.head.weight *= 30
        for parameter in (value for key, value in model.named_parameters() if key.endswith("out_proj.weight")):
            parameter *= 5
    return model


@pytest.fixture(
    scope="module", params=[(name, precision) for name in SMALL for precision in ("fp32", "fp16")], ids="-".join
)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name, precision = request.param
    model = small_model(name)
    return export(model, tmp_path_factory.mktemp("verify") / f"{name}-{precision}", precision=precision)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long averages of latencies, which no test reads, and one thread."""
    monkeypatch.setattr(verification, "_LATENCY_SECONDS", 0.0)
    torch.set_num_threads(1)


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may spoil."""
    shutil.copytree(original.path, tmp_path / original.path.name)
    return Bundle.load(tmp_path / original.path.name)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs, and a file that is none."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        try:
            picture = getattr(data, name)()
        except Exception:  # not in the wheel, and there is no network
            continue
        cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
    (folder / "empty.png").touch()
    assert len(list(folder.iterdir())) >= 3
    return folder


def edit(bundle: Bundle, node_name: str, position: int, change: float) -> Bundle:
    """Change a quarter of a weight that one node reads (and only that node), and restate the digest, as an attacker or a bug would."""
    graph = onnx.load(bundle.path / "model.onnx")
    node = next(node for node in graph.graph.node if node.name == node_name)
    weight = next(entry for entry in graph.graph.initializer if entry.name == node.input[position])
    array = numpy_helper.to_array(weight).copy()
    array.flat[: array.size // 4] += change
    private = numpy_helper.from_array(array, f"{weight.name}_changed")
    graph.graph.initializer.append(private)
    node.input[position] = private.name
    onnx.save(graph, bundle.path / "model.onnx")
    return bundle.with_files("model.onnx")


def test_photographs_agree_on_every_backend(bundle: Bundle, photos: Path) -> None:
    report = verify(bundle, inputs=photos, batch=2)
    assert report.passed, [backend.model_dump() for backend in report.backends]
    assert [backend.backend for backend in report.backends] == ["ort-cpu", "ort-function"]
    assert set(report.left_out) == {"tensorrt", "tensorrt-rtx", "ort-cuda"}
    assert all(report.left_out.values())
    assert report.inputs.kind == "pictures"
    assert report.inputs.source == photos.name
    assert len(report.inputs.skipped) == 1
    for backend in report.backends:
        assert backend.latency_ms is not None
        assert backend.latency_ms > 0
        assert backend.outputs[0].shape == (len(report.inputs.samples), 7)


def test_the_report_is_written_and_the_bundle_stays_valid(bundle: Bundle) -> None:
    report = verify(bundle, samples=3)
    again = Bundle.load(bundle.path)
    assert {"parity.json", "parity.html"} <= set(again.manifest.files)
    assert again.manifest.parity is not None
    assert again.manifest.parity.passed
    assert set(again.manifest.parity.max_abs_error) == {"ort-cpu", "ort-function"}
    assert ParityReport.model_validate_json((bundle.path / "parity.json").read_text()) == report
    assert "Passed." in (bundle.path / "parity.html").read_text()
    for text in ((bundle.path / name).read_text() for name in ("parity.json", "parity.html", "manifest.json")):
        assert str(bundle.path.parent) not in text
    assert verify(again, samples=3, write=False).passed  # verified once more


def test_the_same_seed_gives_the_same_figures(original: Bundle) -> None:
    first, second = (verify(original, ["ort-cpu"], samples=6, seed=3, write=False) for _ in range(2))
    assert first.backends[0].outputs == second.backends[0].outputs
    other = verify(original, ["ort-cpu"], samples=6, seed=4, write=False)
    assert other.backends[0].outputs != first.backends[0].outputs


CULPRITS = {
    "vim_tiny": [("layers.3.mixer.in_proj", "layers.3.mixer"), ("layers.4.mixer.out_proj", "layers.4.mixer")],
    "medmamba_t": [
        ("layers.1.blocks.0.self_attention.in_proj", "layers.1.blocks.0.self_attention"),
        ("layers.0.downsample.reduction", "layers.0.downsample"),
    ],
}


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_weight_is_found_in_its_layer(bundle: Bundle, which: int) -> None:
    name = bundle.manifest.model.name
    module, around = CULPRITS[name][which]
    products = [node.name for node in onnx.load(bundle.path / "model.onnx").graph.node if node.op_type == "MatMul"]
    node = next(name for name in products if name.startswith((f"{module}/", f"{around}/")))
    report = verify(edit(bundle, node, 1, 4.0), samples=4)
    assert not report.passed
    for backend in report.backends:
        assert backend.divergence is not None, backend
        assert backend.divergence.against == "pytorch"
        assert backend.divergence.module.startswith(around), backend.divergence.describe()
        assert backend.divergence.error_before < 0.1 * (backend.divergence.error or np.inf)
        assert backend.divergence.sharp
    page = (bundle.path / "parity.html").read_text()
    assert "Failed:" in page
    assert around in page


def test_a_wrong_kernel_is_found_at_its_node(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gets the skip connection D wrong in one layer, while the function is right."""

    def broken(model: bytes, folder: Path) -> probing.Session:
        graph = onnx.ModelProto.FromString(model)
        scans = [node for node in graph.graph.node if node.op_type == "SelectiveScan"]
        if len(scans) > 2:  # (a graph cut down to earlier tensors may have fewer)
            skip = next(entry for entry in graph.graph.initializer if entry.name == scans[2].input[5])
            values = numpy_helper.to_array(skip).copy()
            values[:, ::2] *= -5
            wrong = numpy_helper.from_array(values, "wrong_skip")
            graph.graph.initializer.append(wrong)
            scans[2].input[5] = "wrong_skip"
        return make_session(graph.SerializeToString(), kernel=True)

    class BrokenEngine(Engine):
        backend = "broken"

        def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
            super().__init__(bundle, threads=threads)
            self.session = broken(bundle.file("model.onnx").read_bytes(), bundle.path)

        @classmethod
        def unavailable(cls) -> str | None:
            return None

        def infer(self, frames: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": self.session.run(["logits"], {"frames": frames})[0]}

    backend_class = engines.backend_class
    monkeypatch.setitem(engines.BACKENDS, "broken", ("", ""))
    monkeypatch.setattr(
        engines, "backend_class", lambda name: BrokenEngine if name == "broken" else backend_class(name)
    )
    monkeypatch.setitem(probing.SESSIONS, "broken", broken)
    scans = [n for n in onnx.load(bundle.path / "model.onnx").graph.node if n.op_type == "SelectiveScan"]

    report = verify(bundle, ["broken", "ort-function"], samples=4)
    assert not report.passed
    wrong, right = report.backends
    assert right.passed
    assert right.divergence is None
    assert wrong.divergence is not None
    assert wrong.divergence.op_type == "SelectiveScan"
    assert wrong.divergence.node == scans[2].name
    assert wrong.divergence.against == "ort-function"
    # And alone, against PyTorch, where scans are compared too.
    (alone,) = verify(bundle, ["broken"], samples=4, write=False).backends
    assert alone.divergence is not None
    assert alone.divergence.against == "pytorch"
    assert alone.divergence.node == scans[2].name


def test_a_tolerance_that_nothing_meets_fails_without_naming_a_fault(original: Bundle) -> None:
    report = verify(original, ["ort-cpu"], samples=2, tolerance=Tolerance(atol=1e-12, rtol=0), write=False)
    assert not report.passed


def test_infinite_weights_fail_and_are_found(bundle: Bundle) -> None:
    node = next(
        node.name
        for node in onnx.load(bundle.path / "model.onnx").graph.node
        if node.op_type == "MatMul" and "layers.1" in node.name
    )
    report = verify(edit(bundle, node, 1, np.inf), samples=2)
    assert not report.passed
    output = report.backends[0].outputs[0]
    assert output.not_finite > 0
    assert report.backends[0].divergence is not None
    assert report.backends[0].divergence.error is None
    json.loads((bundle.path / "parity.json").read_text())


def test_bad_requests_are_one_line(original: Bundle, tmp_path: Path) -> None:
    cases: list[tuple[type[EdgeMambaError], dict[str, object]]] = [
        (EngineError, {"backends": ["tensorflow"]}),
        (SourceError, {"inputs": tmp_path / "nothing"}),
        (SourceError, {"inputs": tmp_path}),
        (ExportError, {"batch": 0}),
        (CheckpointError, {"checkpoint": tmp_path / "missing.pth"}),
    ]
    for error, options in cases:
        with pytest.raises(error) as caught:
            verify(original, write=False, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_bundle_without_weights_needs_a_checkpoint(original: Bundle, tmp_path: Path) -> None:
    model = small_model(original.manifest.model.name)
    bundle = export(model, tmp_path / "b", precision=original.manifest.precision, weights=False)
    with pytest.raises(BundleError, match="--checkpoint"):
        verify(bundle)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    report = verify(bundle, ["ort-cpu"], samples=2, checkpoint=tmp_path / "weights.pth")
    assert report.passed
    assert report.reference["weights"] == "weights.pth"


def test_weights_of_another_model_are_named(bundle: Bundle) -> None:
    from safetensors.torch import save_file

    save_file({"head.weight": torch.ones(2, 2)}, bundle.path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors does not fit"):
        verify(bundle.with_files("weights.safetensors"), samples=1)
