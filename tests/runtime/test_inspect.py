"""`edgemamba inspect`, and the ONNX reader behind it, against the onnx package and against damaged files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_bundle import write_scan_bundle

from edgemamba.export.graph import strip_functions
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.cli import main
from edgemamba.runtime.errors import BundleError
from edgemamba.runtime.onnx_summary import summarise


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def run(*arguments: str) -> int:
    try:
        main(["inspect", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_summary_agrees_with_the_onnx_package(bundle: Bundle) -> None:
    model, found = onnx.load(bundle.file(MODEL)), summarise(bundle.file(MODEL))
    names = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    assert found.operators == names
    assert found.nodes == len(model.graph.node)
    assert found.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert found.functions == ["edgemamba::SelectiveScan"]
    assert found.ir_version == model.ir_version
    assert found.initializers == len(model.graph.initializer)
    assert found.weight_bytes == sum(onnx.numpy_helper.to_array(w).nbytes for w in model.graph.initializer)


def test_weights_in_typed_fields_count_too(tmp_path: Path) -> None:
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [5], [1.0, 2.0, 3.0, 4.0, 5.0])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5])
    graph = onnx.helper.make_graph([node], "g", [value], [value], [weights])
    onnx.save(onnx.helper.make_model(graph, producer_name="me", producer_version="7"), tmp_path / MODEL)
    found = summarise(tmp_path / MODEL)
    assert found.weight_bytes == 20
    assert found.producer == "me 7"


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"not a model at all", b"\xff" * 64, b"\x3a\xff\xff\xff\xff\x0f"])
def test_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MODEL).write_bytes(data)
    with pytest.raises(BundleError, match="is not a readable ONNX model"):
        summarise(tmp_path / MODEL)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_survived(bundle: Bundle, tmp_path: Path, data: st.DataObject) -> None:
    """Any cut and any changed bytes: a summary or a BundleError, never anything else."""
    content = bytearray(bundle.file(MODEL).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / MODEL
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        summarise(damaged)
    except BundleError as error:
        assert "readable ONNX model" in str(error)  # noqa: PT017 - either outcome is right


def test_text_names_what_matters(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(bundle.path)) == 0
    text = capsys.readouterr().out
    for part in (
        "tiny_scan, fp32, opset 20",
        "uint8 (batch, 16, 16, 3)",
        "4: axial, coronal",
        "never verified",
        "model.onnx",
    ):
        assert part in text
    assert "function for stock runtimes: with" in text


def test_json(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(bundle.path / "manifest.json"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["model"]["name"] == "tiny_scan"
    assert document["files"] == [{"name": MODEL, "bytes": bundle.file(MODEL).stat().st_size, "problem": None}]
    assert document["graph"]["operators"]["edgemamba::SelectiveScan"] == 1


def test_a_changed_file_is_shown_and_is_exit_2(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "changed")
    with (folder / MODEL).open("ab") as file:
        file.write(b"\0")
    assert run(str(folder)) == 2
    output = capsys.readouterr()
    assert "not as written" in output.out
    assert "tiny_scan" in output.out
    assert "nodes" not in output.out, "a changed graph is not parsed"
    assert output.err.strip().endswith("model.onnx was changed since the bundle was written (its SHA-256 differs)")
    assert run(str(folder), "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["graph"] is None
    assert "was changed" in document["files"][0]["problem"]


def test_a_graph_without_the_function_is_told(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "stripped"))
    onnx.save(strip_functions(onnx.load(folder / MODEL)), folder / MODEL)
    Bundle(folder, bundle.manifest).with_files(MODEL)
    assert run(str(folder)) == 0
    assert "WITHOUT" in capsys.readouterr().out


def test_markup_in_names_is_not_interpreted(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "markup"))
    Bundle(folder, bundle.manifest).with_files(MODEL, class_names=("[red]a[/]", "[/nothing]", "c", "d"))
    assert run(str(folder)) == 0
    assert "[/nothing]" in capsys.readouterr().out


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path)) == 2
    assert "has no manifest.json" in capsys.readouterr().err
    assert run(str(tmp_path / "nowhere")) == 2
