"""The TensorRT backends: refusals on a machine without a GPU (real), and the engine's life on stand-ins for one (fake)."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.fake_gpu import CAPTURE_UNSUPPORTED, OUT_OF_MEMORY, FakeDriver, FakeTensorRT

from edgemamba.runtime.bundle import MANIFEST, MODEL
from edgemamba.runtime.engines import available, cuda_driver, load, tensorrt_library
from edgemamba.runtime.engines.tensorrt import TensorRTEngine, split
from edgemamba.runtime.errors import BundleError, EngineError

ENGINE = "engines/fake.engine"
CARD = {
    "file": ENGINE,
    "backend": "tensorrt",
    "version": "10.3.0",
    "device": "Fake Orin",
    "compute_capabilities": ["8.7"],
    "precision": "fp32",
    "shapes": [[1, 32, 32, 3], [1, 32, 32, 3], [4, 32, 32, 3]],
    "build_seconds": 1.0,
}
WithEngine = Callable[..., Path]


@pytest.fixture
def with_engine(colour_bundle: Path, tmp_path: Path) -> WithEngine:
    """Makes copies of the colour bundle with engines in them."""

    def make(*cards: dict[str, Any], plan: bytes = b"fake engine") -> Path:
        folder = tmp_path / "bundle"
        (folder / "engines").mkdir(parents=True)
        (folder / MODEL).write_bytes((colour_bundle / MODEL).read_bytes())
        (folder / ENGINE).write_bytes(plan)
        manifest = json.loads((colour_bundle / MANIFEST).read_text())
        own = {"model_sha256": manifest["files"][MODEL]}
        manifest["engines"] = [{**CARD, **own, **card} for card in cards or ({},)]
        manifest["files"][ENGINE] = hashlib.sha256(plan).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """A fake driver and a fake TensorRT, in the places of the real ones; nothing may leak from either."""
    driver = FakeDriver()
    trt = FakeTensorRT(driver)
    modules = {"cuda.bindings.driver": driver, "tensorrt": trt}
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for module in (cuda_driver, tensorrt_library):
        monkeypatch.setattr(module, "require", lambda name, **_: modules[name])
    monkeypatch.setattr(tensorrt_library, "_LOADED", {})
    yield trt
    assert driver.leaks() == {}


def frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def expected(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (values.astype(np.float32).mean((1, 2)) * (8 / 255)).astype(np.float32)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
def test_without_a_gpu_a_backend_is_refused_in_one_line(colour_bundle: Path, backend: str) -> None:
    reason = available()[backend]
    if reason is None:
        pytest.skip("there is a GPU here")
    assert "\n" not in reason
    with pytest.raises(EngineError, match=f"backend {backend} cannot be used here") as caught:
        load(colour_bundle, backend)
    assert reason in str(caught.value)


def test_fake_gpu_every_batch_gives_its_own_logits(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    with load(with_engine(), "tensorrt") as engine:
        # As it is, three times the same shape (the graph), another shape, more than the engine takes, and none.
        kept = []
        for seed, count in enumerate((1, 1, 1, 3, 9, 0, 1)):
            values = frames(count, seed)
            logits = engine.infer(values)["logits"]
            np.testing.assert_allclose(logits, expected(values), rtol=1e-6)
            kept.append((logits, expected(values)))
        for logits, before in kept:  # later runs changed none of them
            np.testing.assert_allclose(logits, before, rtol=1e-6)


def test_fake_gpu_repeated_shapes_are_launched_as_a_graph(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    with load(with_engine(), "tensorrt") as engine:
        engine.infer(frames(2))
        assert not engine.describe()["cuda_graph"]
        engine.infer(frames(2))
        assert engine.describe()["cuda_graph"]
        fake.driver.calls.clear()
        engine.infer(frames(2))
        # One launch and one wait: no allocation, no copy that is not in the graph.
        assert fake.driver.calls == ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"]
        engine.infer(frames(1))
        assert not engine.describe()["cuda_graph"]


@pytest.mark.parametrize("where", ["engine", "driver"])
def test_fake_gpu_what_cannot_be_captured_runs_without(with_engine: WithEngine, fake: FakeTensorRT, where: str) -> None:
    fake.captures = where != "engine"
    if where == "driver":
        fake.driver.fail["cuGraphInstantiate"] = CAPTURE_UNSUPPORTED
    with load(with_engine(), "tensorrt") as engine:
        for seed in range(4):
            values = frames(2, seed)
            np.testing.assert_allclose(engine.infer(values)["logits"], expected(values), rtol=1e-6)
        assert not engine.describe()["cuda_graph"]
        assert fake.driver.calls.count("cuStreamBeginCapture") == 1


def test_fake_gpu_small_batches_are_filled_up(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    fake.least = 3
    with load(with_engine(), "tensorrt") as engine:
        for count in (1, 4, 5):
            logits = engine.infer(frames(count))["logits"]
            np.testing.assert_allclose(logits, expected(frames(count)), rtol=1e-6)


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate"])
def test_fake_gpu_out_of_memory_is_one_line_and_leaks_nothing(
    with_engine: WithEngine, fake: FakeTensorRT, call: str
) -> None:
    fake.driver.fail[call] = OUT_OF_MEMORY
    with pytest.raises(EngineError, match="CUDA: out of memory"):
        load(with_engine(), "tensorrt")


def test_fake_gpu_a_failing_launch_names_backend_and_shape(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    with load(with_engine(), "tensorrt") as engine:
        fake.driver.fail["cuMemcpyHtoDAsync"] = OUT_OF_MEMORY
        with pytest.raises(EngineError, match=r"tensorrt failed on an input of shape \(2, 32, 32, 3\): CUDA"):
            engine.infer(frames(2))
    engine.close()  # twice is fine
    with pytest.raises(EngineError, match="closed"):
        engine.infer(frames(1))


def test_fake_gpu_a_plan_of_garbage_is_refused_with_the_librarys_reason(
    with_engine: WithEngine, fake: FakeTensorRT
) -> None:
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 refuses .*fake\.engine: .*magicTag") as caught:
        load(with_engine(plan=b"something else"), "tensorrt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"version": "10.3.1"}, r"built with TensorRT 10\.3\.1, and 10\.3\.0 is installed"),
        ({"device": "NVIDIA A100"}, "was built for NVIDIA A100, and this GPU is Fake Orin"),
        ({"device": "", "compute_capabilities": ["8.6", "8.9"]}, r"compute capability 8\.6, 8\.9"),
        ({"model_sha256": "0" * 64}, "was built from another model.onnx"),
        ({"backend": "tensorrt-rtx"}, "has no engine for tensorrt: edgemamba build"),
    ],
    ids=["version", "device", "capability", "graph", "backend"],
)
def test_fake_gpu_an_engine_for_something_else_is_refused(
    with_engine: WithEngine, fake: FakeTensorRT, card: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        load(with_engine(card), "tensorrt")
    assert "edgemamba build" in str(caught.value)
    assert fake.runs == 0


def test_fake_gpu_the_engine_that_fits_is_taken(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    with load(with_engine({"version": "9.9"}, {"precision": "fp16"}, {"device": "Other"}), "tensorrt") as engine:
        assert engine.describe()["precision"] == "fp16"
        assert engine.describe()["device"] == "Fake Orin"


def test_fake_gpu_the_plugin_is_loaded_once_and_only_where_needed(
    with_engine: WithEngine, fake: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plugins"
    monkeypatch.setenv("EDGEMAMBA_TRT_PLUGIN_DIR", str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    bundle = with_engine({"plugin": "libedgemamba_trt10.so"})
    if "trt10" not in str(list(Path(tensorrt_library.__file__).parents[1].glob("libedgemamba_trt*"))):
        with pytest.raises(EngineError, match=r"plugin .* is not built on this machine"):
            load(bundle, "tensorrt")
    folder.mkdir()
    (folder / "libedgemamba_trt10.so").touch()
    for _ in range(2):
        load(bundle, "tensorrt").close()
    assert fake.plugins == [str(folder / "libedgemamba_trt10.so")]
    monkeypatch.setattr(fake, "load_library", lambda path: None)
    tensorrt_library._LOADED.clear()
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 refuses the plugin"):
        load(bundle, "tensorrt")


def test_fake_gpu_a_plugin_that_the_application_registered_is_not_loaded_again(
    with_engine: WithEngine, fake: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT refuses a second one of the same name."""
    monkeypatch.setenv("EDGEMAMBA_TRT_PLUGIN_DIR", str(tmp_path))
    (tmp_path / "libedgemamba_trt10.so").touch()
    monkeypatch.setattr(fake, "load_library", lambda path: None)
    fake.creators.append(("SelectiveScan", "1", "edgemamba"))
    load(with_engine({"plugin": "libedgemamba_trt10.so"}), "tensorrt").close()


def test_fake_gpu_a_release_that_the_plugin_does_not_serve(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    fake.__version__ = "12.0.0"
    with pytest.raises(EngineError, match=r"the TensorRT plugin serves TensorRT 10, 11 .* not TensorRT 12"):
        load(with_engine({"plugin": "libedgemamba_trt11.so", "version": "12.0.0"}), "tensorrt")


def test_an_engine_with_a_changed_byte_is_refused_before_it_is_read(
    with_engine: WithEngine, fake: FakeTensorRT
) -> None:
    bundle = with_engine()
    (bundle / ENGINE).write_bytes(b"fake engine!")
    with pytest.raises(BundleError, match=r"fake\.engine"):
        load(bundle, "tensorrt")


def test_frames_of_another_size_than_the_engines_are_refused(with_engine: WithEngine, fake: FakeTensorRT) -> None:
    with load(with_engine(), "tensorrt") as engine, pytest.raises(EngineError, match="16"):
        engine.infer(np.zeros((1, 16, 32, 3), np.uint8))


def test_auto_takes_an_engine_where_there_is_one_and_falls_back_where_not(
    with_engine: WithEngine, colour_bundle: Path, fake: FakeTensorRT
) -> None:
    with load(with_engine()) as engine:
        assert isinstance(engine, TensorRTEngine)
    pytest.importorskip("onnxruntime")
    with load(colour_bundle) as engine:
        assert engine.backend.startswith("ort")


def test_split_keeps_the_order_and_repeats_the_last_frame() -> None:
    values = np.arange(7)[:, None]
    assert [part[:, 0].tolist() for part in split(values, 2, 3)] == [[0, 1, 2], [3, 4, 5], [6, 6]]


def test_the_fake_driver_takes_what_the_real_one_takes() -> None:
    """Every call the runtime makes exists in cuda-bindings, with as many arguments as the stand-in has."""
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is in the trt extra")
    used = sorted(set(re.findall(r"\bcu[A-Z]\w+", Path(str(cuda_driver.__file__)).read_text())))
    assert len(used) > 20
    for name in used:
        text = (getattr(real, name).__doc__ or "").strip().splitlines()[0]
        arguments = text.partition("(")[2].rpartition(")")[0]
        own = inspect.signature(object.__getattribute__(FakeDriver(), name)).parameters
        assert len(own) == len([a for a in arguments.split(",") if a.strip()]), text
