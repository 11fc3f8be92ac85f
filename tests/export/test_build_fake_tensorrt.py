"""`edgemamba build --backend tensorrt` on stand-ins for the GPU and for TensorRT, whose builder no machine without a GPU has:
what is asked of the library, by release, and what is said when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scan_bundle import write_scan_bundle

from edgemamba.export.building.engine import build_engine
from edgemamba.export.building.options import BuildOptions
from edgemamba.runtime.bundle import MANIFEST, MODEL, Bundle
from edgemamba.runtime.engines import cuda_driver
from edgemamba.runtime.errors import EngineError, ExportError
from edgemamba.runtime.operator import INPUT_NAMES, OP_TYPE
from edgemamba.runtime.trt_plugin import ENVIRONMENT, plugin_file

FAKE = Path(__file__).with_name("fake_builder")
Build = Callable[..., dict[str, Any]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_scan_bundle(tmp_path / "tiny")


@pytest.fixture
def fake(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds with a stand-in of a release; returns what was asked of it."""
    log = tmp_path / "log.json"
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    monkeypatch.setenv("FAKE_TENSORRT_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", str(FAKE), prepend=os.pathsep)
    monkeypatch.setenv(ENVIRONMENT, str(plugins))
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setattr(cuda_driver, "unavailable", lambda: None)
    device = cuda_driver.Device("Fake Orin", "8.7", 16, "12.6")
    monkeypatch.setattr(cuda_driver, "device", lambda: device)

    def build(version: str, fault: str = "", changed: Bundle = bundle, **options: Any) -> dict[str, Any]:
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        monkeypatch.setenv("FAKE_TENSORRT", json.dumps({"version": version, "fault": fault}))
        for major in (10, 11):
            (plugins / plugin_file(major)).touch()
        card = build_engine(changed, BuildOptions("tensorrt", **options))
        assert (card.version, card.device, card.compute_capabilities) == (version, "Fake Orin", ("8.7",))
        asked: dict[str, Any] = json.loads(log.read_text())
        return asked | {"card": card}

    yield build
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


@pytest.mark.parametrize(
    ("precision", "flags", "cleared"), [("fp32", [], ["TF32"]), ("fp16", ["FP16"], []), ("bf16", ["BF16"], [])]
)
def test_fake_tensorrt_10_takes_types_from_flags(
    fake: Build, precision: str, flags: list[str], cleared: list[str]
) -> None:
    asked = fake("10.3.0", precision=precision)
    assert (asked["flags"], asked["cleared"], asked["network"]) == (flags, cleared, 0)
    assert asked["card"].precision == precision
    assert asked["card"].file == f"engines/tensorrt_10.3.0_sm87_{precision}.engine"


@pytest.mark.parametrize(
    ("version", "functions"), [("10.3.0", 0), ("10.6.0", 0), ("10.7.0", 1), ("10.15.1", 1), ("11.4.0.106", 1)]
)
def test_fake_tensorrt_gets_the_function_from_10_7_on(fake: Build, version: str, functions: int) -> None:
    """Before, its parser would take it instead of the plugin."""
    asked = fake(version)
    assert asked["functions"] == functions
    assert asked["plugin"].endswith(plugin_file(int(version.partition(".")[0])))
    assert asked["card"].plugin == plugin_file(int(version.partition(".")[0]))
    without = fake(version, plugin=False)
    assert without["functions"] == 1
    assert "plugin" not in without


def test_fake_tensorrt_11_takes_types_from_the_graph(fake: Build) -> None:
    asked = fake("11.4.0.106")
    assert (asked["network"], asked["flags"]) == (0, [])
    with pytest.raises(ExportError, match=r"--precision bf16: TensorRT 11\.4\.0\.106 takes types from the graph"):
        fake("11.4.0.106", precision="bf16")


def test_fake_tensorrt_10_types_a_half_graph_strongly(fake: Build, bundle: Bundle) -> None:
    """The flag's bit is looked up by its name: it is another one in 11."""
    assert fake("10.3.0", changed=bundle.with_files(precision="fp16"))["network"] == 1 << 1


def test_fake_tensorrt_shapes_are_the_profile(fake: Build) -> None:
    assert fake("10.3.0", shapes="1/2/4")["shapes"] == [[n, 16, 16, 3] for n in (1, 2, 4)]


def test_fake_tensorrt_the_timing_cache_is_read_and_written(fake: Build, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    assert fake("10.3.0", timing_cache=cache)["cache"] == ""
    assert cache.read_bytes() == b"timed;"
    assert fake("10.3.0", timing_cache=cache)["cache"] == "timed;"
    assert cache.read_bytes() == b"timed;timed;"
    cache.write_bytes(b"another device's")
    with pytest.raises(EngineError, match=r"the timing cache .* is of another TensorRT or GPU; name a new file"):
        fake("10.3.0", timing_cache=cache)
    assert cache.read_bytes() == b"another device's"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("parser", r"^TensorRT 10\.3\.0: the parser refuses the graph: node head \(Gemm\): not supported$"),
        ("plugin", r"^TensorRT 10\.3\.0: the plugin .*trt10\.so was not accepted by tensorrt 10\.3\.0$"),
        ("function", r"of 1 scans only 0 became plugins; the parser took the function$"),
        ("abort", r"^TensorRT 10\.3\.0 crashed while building \(SIGABRT\)"),
    ],
)
def test_fake_tensorrt_failures_are_one_line_and_leave_the_bundle(
    fake: Build, bundle: Bundle, fault: str, message: str
) -> None:
    fake("10.3.0")
    before = (bundle.path / MANIFEST).read_bytes()
    with pytest.raises(EngineError, match=message) as caught:
        fake("10.3.0", fault)
    assert "\n" not in str(caught.value)
    assert (bundle.path / MANIFEST).read_bytes() == before
    assert [path.name for path in (bundle.path / "engines").iterdir()] == ["tensorrt_10.3.0_sm87_fp32.engine"]


def test_fake_tensorrt_an_engine_is_replaced_before_it_is_recorded(
    fake: Build, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the two, the bundle has an engine too many, and not one that its digest denies."""
    fake("10.3.0")
    monkeypatch.setattr(Bundle, "with_files", lambda *_, **__: 1 / 0)
    bundle = Bundle.load(bundle.path)
    with pytest.raises(ZeroDivisionError):
        build_engine(bundle, BuildOptions("tensorrt"))
    assert Bundle.load(bundle.path).manifest.engines == ()


def test_fake_tensorrt_is_not_asked_for_an_order_that_leaves_the_map(fake: Build, bundle: Bundle) -> None:
    """The kernels would leave such steps out without a word."""
    model = onnx.load(bundle.file(MODEL))
    (scan,) = [node for node in model.graph.node if node.op_type == OP_TYPE]
    scan.input[INPUT_NAMES.index("order")] = "constant"
    steps = np.arange(-1, 255, dtype=np.int32)
    model.graph.initializer.append(numpy_helper.from_array(np.stack([steps, steps[::-1]]), "constant"))
    onnx.save(model, bundle.path / MODEL)
    with pytest.raises(ExportError, match="order visits position -1 in direction 0, which is outside "):
        fake("10.3.0", changed=bundle.with_files(MODEL))
    assert not (bundle.path / "engines").exists()


INTERRUPTED = """
import sys
from edgemamba.runtime.engines import cuda_driver
cuda_driver.unavailable = lambda: None
cuda_driver.device = lambda: cuda_driver.Device("Fake Orin", "8.7", 16, "12.6")
from edgemamba.runtime.cli import main
main(sys.argv[1:])
"""


def test_fake_tensorrt_ctrl_c_leaves_nothing_half_written(fake: Build, bundle: Bundle) -> None:
    fake("10.3.0")
    before = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    settings = json.dumps({"version": "10.3.0", "fault": "hang"})
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "build", str(bundle.path), "--backend", "tensorrt"],
        env=os.environ | {"FAKE_TENSORRT": settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(bundle.path.glob("engines/.building-*")):
            assert process.poll() is None, process.stderr
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the worker too
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()} == before
    assert not list(bundle.path.glob("engines/.building-*"))
    with pytest.raises(ProcessLookupError):  # the worker went too
        os.killpg(process.pid, 0)
