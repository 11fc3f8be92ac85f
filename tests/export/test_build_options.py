"""What `edgemamba build` refuses before any library is loaded, and what it makes of --shapes and --sm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from scan_bundle import SIZE, scan_graph, write_scan_bundle

from edgemamba.export.building.checks import check_graph, read_graph
from edgemamba.export.building.dialects import Dialect
from edgemamba.export.building.options import BuildOptions, parse_sm, profile
from edgemamba.export.graph import selective_scan_model, strip_functions
from edgemamba.runtime.bundle import Bundle, Manifest
from edgemamba.runtime.cli import main
from edgemamba.runtime.errors import BundleError, ExportError

PATH = Path("model.onnx")
EXTENTS = {"P": 12, "Gu": 1, "G": 2, "D": 4, "N": 4, "S": 12}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def changed(manifest: Manifest, **changes: object) -> Manifest:
    return Manifest.model_validate({**manifest.model_dump(), **changes})


@pytest.mark.parametrize(
    ("shapes", "batches"),
    [("", (1, 1, 8)), ("4", (4, 4, 4)), ("1/2/16", (1, 2, 16)), (f"1x{SIZE}x{SIZE}/2x16X16/3x16x16", (1, 2, 3))],
)
def test_shapes(bundle: Bundle, shapes: str, batches: tuple[int, int, int]) -> None:
    assert profile(bundle.manifest, shapes) == tuple((batch, SIZE, SIZE, 3) for batch in batches)


def test_sides_that_vary(tmp_path: Path) -> None:
    manifest = write_scan_bundle(tmp_path / "dynamic", dynamic=True).manifest
    assert profile(manifest, "1x16x32/2x32x32/4x64x96") == ((1, 16, 32, 3), (2, 32, 32, 3), (4, 64, 96, 3))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("1/2", "give one shape, or MIN/OPT/MAX"),
        ("8/4/1", "8, 4 and 1 are not in ascending order"),
        ("0/1/2", "give BATCHxHEIGHTxWIDTH or the batch alone"),
        ("1x16", "give BATCHxHEIGHTxWIDTH"),
        ("one", "give BATCHxHEIGHTxWIDTH"),
        ("1x16x17", "the graph's width is 16; export with --dynamic width to vary it"),
        ("99999999999", "give BATCHxHEIGHTxWIDTH"),
    ],
)
def test_shapes_that_cannot_be(bundle: Bundle, shapes: str, message: str) -> None:
    with pytest.raises(ExportError, match=message.replace("(", "\\(")):
        profile(bundle.manifest, shapes)


def test_a_batch_that_the_graph_fixes(bundle: Bundle) -> None:
    card = bundle.manifest.input.model_dump() | {"shape": (2, SIZE, SIZE, 3)}
    fixed = changed(bundle.manifest, input=card)
    assert profile(fixed, "") == ((2, SIZE, SIZE, 3),) * 3
    with pytest.raises(ExportError, match="batch is 2; export with --dynamic batch"):
        profile(fixed, "1/2/4")


def test_targets() -> None:
    assert parse_sm("") == ()
    assert parse_sm("86, 89,86") == (86, 89)
    for text in ("8.6", "sm86", "8600"):
        with pytest.raises(ExportError, match="--sm"):
            parse_sm(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt", "sm": (86,)}, "--sm: TensorRT builds for the GPU it runs on"),
        ({"backend": "tensorrt-rtx", "sm": (87,)}, "--sm 87: .* a Jetson needs TensorRT itself"),
        ({"backend": "tensorrt-rtx", "sm": (90,)}, "--sm 90: TensorRT-RTX builds for 75, 80"),
        ({"backend": "tensorrt-rtx", "timing_cache": Path("x")}, "--timing-cache: TensorRT-RTX times nothing"),
        ({"backend": "tvm"}, "no backend 'tvm'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_precision_is_the_graphs_unless_it_can_be_lowered(bundle: Bundle) -> None:
    half = changed(bundle.manifest, precision="fp16")
    assert BuildOptions("tensorrt").resolved_precision(half) == "fp16"
    assert BuildOptions("tensorrt", precision="bf16").resolved_precision(bundle.manifest) == "bf16"
    with pytest.raises(ExportError, match="--precision fp32: the bundle's graph is fp16"):
        BuildOptions("tensorrt", precision="fp32").resolved_precision(half)


@pytest.mark.parametrize(
    ("version", "major", "strips", "lowers"),
    [
        ("10.3.0", 10, True, True),
        ("10.6.0", 10, True, True),
        ("10.7.0", 10, False, True),
        ("11.4.0.106", 11, False, False),
    ],
)
def test_releases_differ(version: str, major: int, strips: bool, lowers: bool) -> None:
    dialect = Dialect("tensorrt", version)
    assert (dialect.plugin_major, dialect.prefers_functions) == (major, strips)
    assert dialect.typing("fp32", "fp32") == ("weak" if lowers else "implied")
    assert dialect.typing("fp16", "fp16") == ("strong" if lowers else "implied")
    if lowers:
        assert dialect.typing("fp32", "bf16") == "weak"
    else:
        with pytest.raises(ExportError, match=r"takes types from the graph, which is fp32: export again"):
            dialect.typing("fp32", "fp16")


def test_a_release_that_is_not_served() -> None:
    with pytest.raises(ExportError, match=r"TensorRT 8\.6\.1 cannot be used: 10 or 11 is needed"):
        Dialect("tensorrt", "8.6.1")


def without(name: str) -> onnx.ModelProto:
    model = scan_graph()
    (node,) = [node for node in model.graph.node if node.op_type == "SelectiveScan"]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    return model


def with_order(order: np.ndarray, extents: dict[str, int] = EXTENTS) -> onnx.ModelProto:
    model = selective_scan_model(extents=extents)
    kept = [value for value in model.graph.input if value.name != "order"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    return model


STEPS = np.arange(12, dtype=np.int32)
BAD_GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no namespace": (lambda: without("plugin_namespace"), "attribute plugin_namespace is missing; export the bundle"),
    "no softplus": (lambda: without("delta_softplus"), "attribute delta_softplus is missing"),
    "states": (lambda: selective_scan_model(extents=EXTENTS | {"N": 65}), r"N \(d_state\) is 65; 1 to 64"),
    "double": (lambda: selective_scan_model(TensorProto.DOUBLE, extents=EXTENTS), "u is double; float, float16 or"),
    "outside": (
        lambda: with_order(np.stack([STEPS, STEPS + 1])),
        r"visits position 12 in direction 1.*outside 0\.\.11",
    ),
    "negative": (lambda: with_order(np.stack([STEPS - 1, STEPS])), "visits position -1 in direction 0"),
    "twice": (lambda: with_order(np.stack([STEPS, STEPS * 0])), "visits a position twice in direction 1"),
    "int64": (lambda: with_order(np.stack([STEPS, STEPS]).astype(np.int64)), "order is int64"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_graphs_that_cannot_be_built(case: str) -> None:
    make, message = BAD_GRAPHS[case]
    with pytest.raises(ExportError, match=f"^model.onnx: node .*SelectiveScan.*{message}"):
        check_graph(make(), PATH, plugin=True)


def test_graphs_that_can() -> None:
    assert check_graph(scan_graph(), PATH, plugin=True) == 1
    assert check_graph(scan_graph(), PATH, plugin=False) == 1
    assert check_graph(with_order(np.stack([STEPS, STEPS[::-1]])), PATH, plugin=True) == 1
    # How many positions there are is not said: only a negative one is wrong in any case.
    loose = {name: extent for name, extent in EXTENTS.items() if name != "P"}
    assert check_graph(with_order(np.stack([STEPS, STEPS + 100]), loose), PATH, plugin=True) == 1


def test_no_plugin_needs_the_function() -> None:
    with pytest.raises(ExportError, match="--no-plugin needs the function of SelectiveScan"):
        check_graph(strip_functions(scan_graph()), PATH, plugin=False)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff\xff\xff\xff not onnx")
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        read_graph(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "tensorrt-rtx", "--sm", "x"], "--sm x: give compute capabilities"),
        (["--backend", "tensorrt-rtx", "--shapes", "9/1/1"], "not in ascending order"),
        (["--backend", "cuda"], "'cuda' is not one of"),
        ([], "Missing option '--backend'"),
    ],
)
def test_bad_usage_is_one_line(
    bundle: Bundle, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build", str(bundle.path), *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (bundle.path / "engines").exists()
