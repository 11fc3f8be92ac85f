"""The ONNX Runtime engines on a bundle: agreement, what they describe, and one clear line for what they refuse."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scan_bundle import CLASSES, SIZE, scan_graph, write_scan_bundle

from edgemamba.export.graph import strip_functions
from edgemamba.runtime import native
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.engines import available, load
from edgemamba.runtime.engines.cuda_ort import OrtCudaEngine
from edgemamba.runtime.engines.ort import OrtCpuEngine, OrtFunctionEngine, make_session
from edgemamba.runtime.errors import EngineError, MissingExtraError, NativeLibraryError

BACKENDS = ["ort-cpu", "ort-function"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def test_both_say_the_same(bundle: Bundle, frames: np.ndarray) -> None:
    with load(bundle, "ort-cpu", threads=2) as ours, load(bundle, "ort-function", threads=1) as stock:
        by_kernel, by_function = ours(frames), stock(frames)
    np.testing.assert_allclose(by_kernel.logits, by_function.logits, atol=1e-5)
    assert by_kernel.class_names == CLASSES
    assert by_kernel.logits.shape == (3, len(CLASSES))
    assert np.ptp(by_kernel.logits) > 1, "the graph does something"


def test_auto_takes_the_kernel(bundle: Bundle) -> None:
    assert load(bundle).backend == "ort-cpu" or available()["ort-cuda"] is None
    assert [name for name, reason in available().items() if reason is None][-2:] == BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_describes_itself(bundle: Bundle, backend: str) -> None:
    facts = load(bundle, backend, threads=2).describe()
    assert facts["backend"] == backend
    assert facts["threads"] == 2
    assert facts["onnxruntime"]
    assert ("isa" in facts) == (backend == "ort-cpu")


def test_stand_in_for_cuda_float32_stays_float32(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a session on a GPU: TF32, the CUDA provider's default, would miss the bar for float32."""
    asked = []

    class StandInSession:
        def __init__(self, *_: object, providers: list[str | tuple[str, dict[str, str]]]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", StandInSession)
    OrtCudaEngine(bundle).close()
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, SIZE, SIZE, 4), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_a_wrong_input_is_named(bundle: Bundle, backend: str, bad: np.ndarray) -> None:
    with pytest.raises(EngineError, match=rf"frames: .*expected .*uint8 \(batch, {SIZE}, {SIZE}, 3\)") as raised:
        load(bundle, backend).infer(bad)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_give_no_logits(bundle: Bundle, backend: str, frames: np.ndarray) -> None:
    predictions = load(bundle, backend)(frames[:0])
    assert predictions.logits.shape == (0, len(CLASSES))
    assert len(predictions) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_need_not_be_contiguous(bundle: Bundle, backend: str, frames: np.ndarray) -> None:
    engine = load(bundle, backend)
    np.testing.assert_array_equal(engine(frames[:, ::-1]).logits, engine(frames[:, ::-1].copy()).logits)


def test_one_engine_from_several_threads(bundle: Bundle, frames: np.ndarray) -> None:
    engine = load(bundle, "ort-cpu", threads=2)
    expected = engine(frames).logits
    with ThreadPoolExecutor(4) as pool:
        for predictions in pool.map(engine, [frames] * 40):
            np.testing.assert_array_equal(predictions.logits, expected)


def test_dynamic_height_and_width(tmp_path: Path) -> None:
    engine = load(write_scan_bundle(tmp_path / "dynamic", dynamic=True), "ort-cpu")
    for height, width in ((SIZE, SIZE), (24, 40)):
        outputs = engine.infer(np.zeros((2, height, width, 3), np.uint8))
        assert outputs["logits"].shape == (2, len(CLASSES))


def test_a_closed_engine_says_so(bundle: Bundle, frames: np.ndarray) -> None:
    engine = load(bundle, "ort-cpu")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(frames)


def test_what_onnx_runtime_says_is_passed_on_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"refuses .*nowhere\.onnx") as missing:
        make_session(tmp_path / "nowhere.onnx", kernel=False)
    with pytest.raises(EngineError, match="refuses the model") as garbage:
        make_session(b"not a model", kernel=False)
    with pytest.raises(EngineError, match="SelectiveScan") as unknown:
        make_session(strip_functions(scan_graph()).SerializeToString(), kernel=False)
    for raised in (missing, garbage, unknown):
        assert "\n" not in str(raised.value)
        assert "ONNXRuntimeError" not in str(raised.value)


def test_a_failure_while_running_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = load(write_scan_bundle(tmp_path / "dynamic", dynamic=True), "ort-function")
    with pytest.raises(EngineError, match=r"ort-function failed on an input of shape \(1, 0, 4, 3\): Scan") as raised:
        engine.infer(np.zeros((1, 0, 4, 3), np.uint8))  # a Scan over nothing
    assert "onnxruntime_src" not in str(raised.value)
    assert capfd.readouterr().err == "", "ONNX Runtime logs nothing of its own"


def test_profile_leaves_a_trace(bundle: Bundle, frames: np.ndarray, tmp_path: Path) -> None:
    session = make_session(bundle.path / MODEL, profile=tmp_path / "trace")
    session.run(None, {"frames": frames})
    trace = Path(session.end_profiling())
    assert trace.parent == tmp_path
    assert "SelectiveScan" in trace.read_text()


def test_without_onnxruntime_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for engine in (OrtCpuEngine, OrtFunctionEngine):
        assert "onnxruntime" in str(engine.unavailable())
    with pytest.raises(EngineError, match=r"onnxruntime"):
        load(bundle)
    with pytest.raises((MissingExtraError, ImportError), match="onnxruntime"):
        make_session(bundle.path / MODEL)


def test_without_the_native_library_the_stock_engine_remains(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> object:
        raise NativeLibraryError("libedgemamba.so is not installed: no compiler")

    monkeypatch.setattr(native, "load_library", absent)
    assert OrtCpuEngine.unavailable() == "libedgemamba.so is not installed: no compiler"
    assert load(bundle).backend == "ort-function"
    with pytest.raises(EngineError, match="backend ort-cpu cannot be used here: libedgemamba"):
        load(bundle, "ort-cpu")


def test_a_graph_of_other_classes_than_the_manifest_names(tmp_path: Path, frames: np.ndarray) -> None:
    bundle = write_scan_bundle(tmp_path / "b")
    (card,) = bundle.manifest.outputs
    claimed = bundle.with_files(outputs=(card.model_copy(update={"shape": ("batch", 2)}),), class_names=("a", "b"))
    with (
        load(claimed, "ort-function") as engine,
        pytest.raises(EngineError, match=r"returns logits \(\d, 4\), expected \(batch, 2\)"),
    ):
        engine(frames)
    other = bundle.with_files(outputs=(card.model_copy(update={"name": "y"}),), class_names=())
    with load(other, "ort-function") as engine, pytest.raises(EngineError, match="has no output 'logits'; it has: y"):
        engine.predictions({"y": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_numbers_of_threads_that_no_machine_has(bundle: Bundle, threads: int) -> None:
    with pytest.raises(EngineError, match=f"threads is {threads}"):
        load(bundle, threads=threads)


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    assert 'pip install "onnxruntime>=1.19"' in str(OrtFunctionEngine.unavailable())
