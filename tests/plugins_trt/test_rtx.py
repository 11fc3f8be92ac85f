"""The proof without a GPU: TensorRT-RTX's real parser finds the plugin by the node's attributes, and its real builder
builds engines with the plugin inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scan_bundle import scan_graph

from edgemamba.export.graph import attach_function, selective_scan_node
from edgemamba.plugins_trt import BuiltPlugin
from edgemamba.runtime.operator import DOMAIN, INPUT_NAMES, OP_TYPE

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The parser loads ``libtensorrt_rtx.so`` by that name when it adds a plugin, and ends the process where it is missing:
    the wheel has it with its version's suffix only."""
    spec = find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt-rtx is in the extra trt-dev (Linux on x86-64)")
    folder = tmp_path_factory.mktemp("rtx")
    (folder / "libtensorrt_rtx.so").symlink_to(
        Path(next(iter(spec.submodule_search_locations))) / "libtensorrt_rtx.so.1"
    )
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


def build(model: onnx.ModelProto, folder: Path, environment: dict[str, str], plugin: Path | str) -> dict[str, Any]:
    """What rtx_build.py says of the model, and what the plugin said on stderr."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    script = Path(__file__).with_name("rtx_build.py")
    command = [sys.executable, str(script), str(path), str(plugin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def one_scan(
    value_type: int, *, parameter_type: int = TensorProto.FLOAT, states: int = 16, channels_of_A: int = 24
) -> onnx.ModelProto:
    """A model of one SelectiveScan with two directions of 24 channels over symbolic batch and positions."""
    rng = np.random.default_rng(0)
    parameters = {"A": -np.exp(rng.standard_normal((2, channels_of_A, states))), "D": np.ones((2, 24))}
    parameters["delta_bias"] = np.zeros((2, 24))
    dtype = helper.tensor_dtype_to_np_dtype(parameter_type)
    weights = [numpy_helper.from_array(value.astype(dtype), name) for name, value in parameters.items()]
    shapes = {"u": (1, 24), "delta": (2, 24), "B": (2, states), "C": (2, states)}
    inputs = [
        helper.make_tensor_value_info(name, value_type, ["batch", "positions", *shape])
        for name, shape in shapes.items()
    ]
    inputs.append(helper.make_tensor_value_info("order", TensorProto.INT32, [2, "positions"]))
    output = helper.make_tensor_value_info("y", value_type, ["batch", "positions", 24])
    node = selective_scan_node(list(INPUT_NAMES), "y")
    graph = helper.make_graph([node], "scan", inputs, [output], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return attach_function(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_a_bundles_graph_with_the_plugin(plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path) -> None:
    model = scan_graph(dynamic=True)
    built = build(model, tmp_path, environment, plugin.plugin)
    assert built["parsed"], built["errors"]
    assert len(built["plugins"]) == sum(node.op_type == OP_TYPE for node in model.graph.node) == 1
    assert built["engine"] > 0, built["errors"]
    assert built["plugin_in_engine"]


def test_the_autoload_library_is_enough(plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path) -> None:
    """Loaded as Polygraphy loads a plugin: by dlopen alone."""
    built = build(one_scan(TensorProto.FLOAT16), tmp_path, environment, plugin.autoload)
    assert len(built["plugins"]) == 1, built["errors"]
    assert built["engine"] > 0
    assert built["stderr"] == ""


def test_polygraphy_builds_with_it(plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path) -> None:
    """The command line that README names, from installed wheels: it loads the plugin before it imports TensorRT."""
    if find_spec("polygraphy") is None:
        pytest.skip("polygraphy is in the extra trt-dev")
    site = tmp_path / "site"
    place = site / "edgemamba/runtime"
    place.mkdir(parents=True)
    for file in (plugin.plugin, plugin.autoload):
        shutil.copy(file, place)
    spec = find_spec("tensorrt_rtx_libs")
    assert spec is not None
    (site / "tensorrt_rtx_libs").symlink_to(next(iter(spec.submodule_search_locations or [])))
    onnx.save(one_scan(TensorProto.FLOAT16), tmp_path / "model.onnx")
    shapes = {"u": (1, 24), "delta": (2, 24), "B": (2, 16), "C": (2, 16)}
    profile = [f"{name}:[2,9,{rows},{width}]" for name, (rows, width) in shapes.items()] + ["order:[2,9]"]
    limits = [part for bound in ("min", "opt", "max") for part in (f"--trt-{bound}-shapes", *profile)]
    tool = "import sys; from polygraphy.tools import main; sys.exit(main())"
    command = [sys.executable, "-c", tool, "convert", str(tmp_path / "model.onnx"), *limits]
    command += ["--plugins", str(place / plugin.autoload.name), "-o", str(tmp_path / "model.engine")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "is not registered" not in done.stderr
    assert b"workspace_bytes" in (tmp_path / "model.engine").read_bytes()


def test_without_the_plugin_the_function_is_built(environment: dict[str, str], tmp_path: Path) -> None:
    """What tells the two apart: more layers, and no trace of the plugin in the engine."""
    built = build(scan_graph(), tmp_path, environment, "-")
    assert built["parsed"], built["errors"]
    assert built["plugins"] == []
    assert built["layers"] > 150
    assert built["engine"] > 0
    assert not built["plugin_in_engine"]


@pytest.mark.parametrize("precision", TYPES)
def test_every_type(precision: str, plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path) -> None:
    built = build(one_scan(TYPES[precision]), tmp_path, environment, plugin.plugin)
    assert built["parsed"], built["errors"]
    assert len(built["plugins"]) == 1
    assert built["engine"] > 0, built["errors"]
    assert built["stderr"] == ""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one_scan(TensorProto.FLOAT16, parameter_type=TensorProto.FLOAT16), "A: dtype float16, expected float32"),
        (one_scan(TensorProto.FLOAT, states=65), "A: "),
        (one_scan(TensorProto.FLOAT, channels_of_A=23), "A: shape (2, 23, 16), expected (G, D, N) = (2, 24, 16)"),
    ],
    ids=["half-parameters", "65-states", "shape"],
)
def test_models_that_cannot_be_built_say_why(
    model: onnx.ModelProto, message: str, plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path
) -> None:
    """No engine, no crash, and a line that names the argument."""
    built = build(model, tmp_path, environment, plugin.plugin)
    assert built["engine"] == 0
    assert f"edgemamba SelectiveScan: {message}" in built["stderr"] + "\n".join(built["errors"])


@pytest.mark.slow
def test_an_exported_model(plugin: BuiltPlugin, environment: dict[str, str], tmp_path: Path) -> None:
    """A small Vim as `edgemamba export` writes it, in half precision: one plugin layer a block."""
    pytest.importorskip("torch", reason="the exporter needs torch")
    from small_models import SIDE, SMALL

    from edgemamba.export import export
    from edgemamba.train import create_model

    exported = export(
        create_model("vim_tiny", img_size=SIDE, **SMALL["vim_tiny"]),
        tmp_path / "vim",
        image_size=SIDE,
        precision="fp16",
    )
    model = onnx.load(exported.path / "model.onnx")
    scans = sum(node.op_type == OP_TYPE for node in model.graph.node)
    built = build(model, tmp_path, environment, plugin.plugin)
    assert built["parsed"], built["errors"]
    assert len(built["plugins"]) == scans == SMALL["vim_tiny"]["depth"]
    assert built["engine"] > 0, built["errors"]
    assert built["plugin_in_engine"]
