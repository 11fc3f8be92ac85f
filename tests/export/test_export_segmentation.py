"""Segmenters as bundles: SegMamba for volumes, heads on 2-D backbones; the whole way from weights to a mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from runtime.volume_files import shapes, write_nifti, write_series
from small_models import small_options
from torch import Tensor, nn

from edgemamba.export import export, verify
from edgemamba.export.mask_parity import compare_masks
from edgemamba.export.parity import Tolerance
from edgemamba.export.reference import reference_model
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.cli import main
from edgemamba.runtime.engines import load
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import Normalisation, VolumeCard
from edgemamba.runtime.volumes.preparing import prepare
from edgemamba.runtime.volumes.reading import read_volumes
from edgemamba.runtime.volumes.segmenting import segment
from edgemamba.train import create_model
from edgemamba.train.checkpoint import training_metadata

pytest.importorskip("onnxruntime")
KERNEL, FUNCTION = "ort-cpu", "ort-function"
NAMES = ("background", "ball", "box")
TINY: dict[str, Any] = {
    "in_chans": 1,
    "depths": (1, 1, 1, 1),
    "feat_size": (4, 6, 8, 8),
    "hidden_size": 8,
    "img_size": (32, 32, 32),
}
CARD = VolumeCard(modalities=("CT",), patch=(32, 32, 32), normalisation=(Normalisation(kind="zscore"),))
BRAIN = VolumeCard(modalities=("T1",), patch=(32, 32, 32), spacing=(5.0, 5.0, 5.0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Random weights; its last layer so that every class occurs."""
    torch.manual_seed(0)
    made = create_model("segmamba", num_classes=3, **TINY)
    with torch.no_grad():
        probe = made.eval()(torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)))
        made.out.conv.conv.bias -= probe.mean(dim=(0, 2, 3, 4))
    return made


@pytest.fixture(scope="module")
def bundle(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("export") / "segmamba", volume=CARD, class_names=NAMES)


@pytest.fixture(scope="module")
def brain(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("export") / "brain", volume=BRAIN, class_names=NAMES)


def template() -> Path:
    """The MNI152 template (a T1 of 152 brains) that comes with nilearn."""
    data = Path(str(pytest.importorskip("nilearn").__file__)).parent / "datasets" / "data"
    return data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def test_the_manifest_states_the_graph(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.task == "segmentation"
    assert manifest.volume == CARD
    assert manifest.input.shape == ("batch", 1, 32, 32, 32)
    assert manifest.outputs[0].shape == ("batch", 3, 32, 32, 32)
    kinds = [node.op_type for node in onnx.load(bundle.file("model.onnx")).graph.node]
    assert kinds.count("SelectiveScan") == 4
    assert "InstanceNormalization" not in kinds  # written out: ONNX Runtime's own is not exact enough
    assert "TopK" not in kinds  # the ways back from the walks are constants


@pytest.mark.parametrize("backend", [KERNEL, FUNCTION])
def test_any_batch_equals_pytorch(backend: str, bundle: Bundle, model: nn.Module) -> None:
    patches = np.random.default_rng(3).standard_normal((3, 1, 32, 32, 32), np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(patches)).numpy()
    with load(bundle, backend) as engine:
        for count in (1, 3):
            got = engine.infer(patches[:count])["logits"]
            assert (np.abs(got - expected[:count]) <= 1e-4 * np.maximum(1, np.abs(expected[:count]))).all()


def test_parity_on_synthetic_patches(bundle: Bundle) -> None:
    report = verify(bundle, [KERNEL, FUNCTION], samples=4, write=False)
    assert report.passed, [backend.model_dump() for backend in report.backends]
    assert report.inputs.batch == 1


def test_parity_on_a_brain(brain: Bundle) -> None:
    """1e-4 in float32, also where most of a window is the constant outside of the head."""
    report = verify(brain, [KERNEL, FUNCTION], template(), samples=4)
    assert report.passed, [backend.model_dump() for backend in report.backends]
    written = (brain.path / "parity.html").read_text()
    assert "window at" in written
    assert "data:image" not in written  # nothing of a patient's volume


def test_parity_in_half_precision(model: nn.Module, tmp_path: Path) -> None:
    made = export(model, tmp_path / "b", volume=BRAIN, precision="fp16")
    report = verify(made, [KERNEL], template(), samples=2)
    assert report.passed, [backend.model_dump() for backend in report.backends]


def test_a_graph_that_says_something_else_fails(bundle: Bundle, tmp_path: Path) -> None:
    """Verification of volumes can fail, and finds the layer."""
    folder = tmp_path / "b"
    shutil.copytree(bundle.path, folder)
    graph = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "decoder1.layer.conv2.conv.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] += 0.2  # of one input alone: what scales them all, the norm behind it takes away
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(graph, folder / "model.onnx")
    other = Bundle(folder, bundle.manifest).with_files("model.onnx")
    report = verify(other, [FUNCTION], samples=2, write=False)
    assert not report.passed
    divergence = report.backends[0].divergence
    assert divergence is not None
    assert "decoder1" in divergence.describe() or "out" in divergence.describe()


# --------------------------------------------------------------------------------------------------------- weights to a mask


def monai_logits(model: nn.Module, values: NDArray[np.float32], card: VolumeCard) -> Tensor:
    """(1, K, D, H, W)."""
    inferers = pytest.importorskip("monai.inferers")
    with torch.no_grad():
        logits: Tensor = inferers.sliding_window_inference(
            torch.from_numpy(values)[None], card.patch, 1, model, overlap=card.overlap, mode=card.blending
        )
    return logits


@pytest.mark.parametrize("backend", [KERNEL, FUNCTION])
def test_series_and_nifti_give_pytorchs_mask(backend: str, bundle: Bundle, model: nn.Module, tmp_path: Path) -> None:
    """Equal to each other, and to PyTorch with MONAI's windows but for ties (at least 99.9 % of the voxels)."""
    values = shapes((20, 50, 40))
    write_series(tmp_path / "ct", values)
    nifti = write_nifti(tmp_path / "ct.nii.gz", values)
    with load(bundle, backend) as engine:
        series = segment(engine, read_volumes([str(tmp_path / "ct")], ("CT",)))
        other = segment(engine, read_volumes([str(nifti)], ("CT",)))
    assert (other.mask.transpose(2, 1, 0) == series.mask).all()
    assert len(np.unique(series.mask)) == 3
    ready = prepare(read_volumes([str(tmp_path / "ct")], ("CT",)), CARD)
    expected = monai_logits(model.eval(), ready.values, CARD)[0].argmax(0).numpy()
    assert (ready.turn.apply(series.mask) == expected).mean() >= 0.999


def test_a_resampled_brain_gives_pytorchs_mask(model: nn.Module, brain: Bundle) -> None:
    """The way back, too: MONAI's logits, interpolated by PyTorch to the source's grid."""
    study = read_volumes([str(template())], BRAIN.modalities)
    with load(brain, KERNEL) as engine:
        result = segment(engine, study)
    ready = prepare(study, BRAIN)
    logits = monai_logits(model.eval(), ready.values, BRAIN)
    wide = F.interpolate(logits, ready.turned, mode="trilinear", align_corners=False)[0].argmax(0).numpy()
    assert result.mask.shape == study.grid.shape
    assert (ready.turn.apply(result.mask) == wide).mean() >= 0.999


# ---------------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code, and both outputs."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, " ".join("".join(capfd.readouterr()).split())

    return run


def test_export_by_name_with_a_card(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(CARD.model_dump_json())
    small = [f"--set={key}={value}" for key, value in TINY.items() if key != "img_size"]
    base = ["export", "--model", "segmamba", "--random-weights", *small, "--num-classes", "3"]
    code, said = call(*base, "--image-size", "32", "--volume", tmp_path / "card.json", "-o", tmp_path / "b")
    assert code == 0, said
    manifest = Bundle.load(tmp_path / "b").manifest
    assert manifest.volume == CARD
    assert manifest.model.config["img_size"] == [32, 32, 32]
    code, said = call("inspect", tmp_path / "b")
    assert code == 0
    for part in ("segmentation", "axes SPL", "32 x 32 x 32, overlap 0.5, gaussian", "zscore"):
        assert part in said
    (tmp_path / "wrong.json").write_text(json.dumps({"modalities": ["a", "b"], "patch": [32, 32, 32]}))
    cases = {
        ("--volume", str(tmp_path / "wrong.json")): "names 2 modalities; the model takes 1",
        ("--volume", str(tmp_path / "absent.json")): "absent.json",
        ("--dynamic", "height"): "patches of one size",
        ("--image-size", "32x32x32x32"): "give pixels as",
    }
    for extra, words in cases.items():
        code, said = call(*base, "--image-size", "32", *extra, "-o", tmp_path / "c")
        assert (code, words in said) == (2, True), said
    assert not (tmp_path / "c").exists()


def test_a_trained_checkpoint_becomes_a_mask(
    model: nn.Module, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """The checkpoint states the card and the names; export, run, and what is printed."""
    trained = create_model("segmamba", num_classes=3, **TINY)
    trained.load_state_dict(model.state_dict())
    trained.volume = CARD
    metadata = training_metadata(trained, list(NAMES))
    torch.save({"edgemamba": metadata, "state_dict": trained.state_dict()}, tmp_path / "last.ckpt")
    code, said = call("export", tmp_path / "last.ckpt", "-o", tmp_path / "b")
    assert code == 0, said
    manifest = Bundle.load(tmp_path / "b").manifest
    assert (manifest.volume, manifest.class_names) == (CARD, NAMES)
    write_series(tmp_path / "ct", shapes())
    code, said = call("run", tmp_path / "b", "-s", tmp_path / "ct", "-o", tmp_path / "mask.seg.dcm")
    assert code == 0, said
    assert "ball" in said
    assert (tmp_path / "mask.seg.dcm").read_bytes()[128:132] == b"DICM"


# -------------------------------------------------------------------------------------------------------- segmenters of pictures


def test_a_2d_segmenter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {**small_options("vmamba_t"), "num_classes": 4, "head_dim": 16}
    segmenter = create_model("vmamba_t", head="fpn", **options)
    made = export(segmenter, tmp_path / "b", class_names=["background", "a", "b", "c"])
    assert made.manifest.task == "segmentation"
    assert made.manifest.input.shape == ("batch", 64, 64, 3)
    assert made.manifest.outputs[0].shape == ("batch", 4, 64, 64)
    report = verify(made, [KERNEL, FUNCTION], samples=6)
    assert report.passed, [backend.model_dump() for backend in report.backends]


class Halved(nn.Module):
    """Says that it segments, and gives logits of half the resolution."""

    task = "segmentation"
    model_name = "halved"

    def __init__(self, preprocess: Callable[..., Preprocessing] = Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocess(size=(16, 16))
        self.conv = nn.Conv2d(3, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_logits_of_another_resolution_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not \(B, num_classes, 16, 16\) logits but"):
        export(Halved(), tmp_path / "b")


def test_masks_are_compared_voxel_by_voxel() -> None:
    truth = np.random.default_rng(0).standard_normal((2, 7, 4, 5))
    tolerance = Tolerance(atol=1e-4, rtol=1e-4)
    same = compare_masks(truth, truth, tolerance)
    assert (same.top1, same.top5, same.passed, same.disagreements, same.ties) == (1, 1, True, (), ())
    wrong = truth.copy()
    wrong[1, :, 0, 0] = -wrong[1, :, 0, 0]
    found = compare_masks(wrong, truth, tolerance)
    assert found.top1 == pytest.approx(1 - 1 / 40)
    assert (found.passed, found.disagreements) == (False, (1,))
    tied = truth.copy()
    tied[0, :2, 1, 1] = truth[0, :, 1, 1].max() + np.array([1.0, 1.00001])
    other = tied.copy()
    other[0, :2, 1, 1] = other[0, 1::-1, 1, 1]
    found = compare_masks(other, tied, tolerance)
    assert (found.top1, found.ties) == (1, (0,))


def test_the_reference_is_rebuilt_from_the_bundle(bundle: Bundle, model: nn.Module) -> None:
    patch = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert (reference_model(bundle)(patch) == model.eval()(patch)).all()
