"""Bundles from strangers: whatever is wrong is one BundleError, before anything in the folder is parsed or executed."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scan_bundle import write_scan_bundle

from edgemamba.runtime.bundle import MANIFEST, MODEL, Bundle, read_manifest, sha256
from edgemamba.runtime.engines import load
from edgemamba.runtime.errors import BundleError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def edit(folder: Path, **changes: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps({**document(folder), **changes}))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as raised:
        Bundle.load(folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_good_one_loads_by_folder_and_by_manifest(folder: Path) -> None:
    assert Bundle.load(folder).manifest == Bundle.load(folder / MANIFEST).manifest
    assert Bundle.load(str(folder)).file(MODEL) == folder / MODEL


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_one_changed_byte(folder: Path, position: int) -> None:
    data = bytearray((folder / MODEL).read_bytes())
    data[position] ^= 1
    (folder / MODEL).write_bytes(data)
    assert "model.onnx was changed" in refused(folder)
    with pytest.raises(BundleError):
        load(folder)


def test_a_change_after_loading_is_seen_when_the_file_is_used(folder: Path) -> None:
    bundle = Bundle.load(folder)
    (folder / MODEL).write_bytes(b"something else")
    with pytest.raises(BundleError, match="changed"):
        load(bundle, "ort-function")


def test_a_missing_model(folder: Path) -> None:
    (folder / MODEL).unlink()
    assert "model.onnx is listed in manifest.json and missing" in refused(folder)


def test_a_folder_where_the_model_should_be(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()
    assert "missing" in refused(folder)


def test_a_manifest_that_lists_no_model(folder: Path) -> None:
    (folder / "other.bin").write_bytes(b"x")
    edit(folder, files={"other.bin": sha256(folder / "other.bin")})
    assert "model.onnx is not listed" in refused(folder)


def test_files_that_are_not_listed_cannot_be_used(folder: Path) -> None:
    (folder / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"lists no file 'extra\.onnx'"):
        Bundle.load(folder).file("extra.onnx")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "engines/../../secret",
        "..",
        "C:\\secret",
        "..\\secret",
        "C:secret",
        "",
        "//host/share",
    ],
)
def test_a_path_outside_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    edit(folder, files={**document(folder)["files"], name: sha256(folder.parent / "secret")})
    assert "points outside the bundle's folder" in refused(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder(folder: Path, absolute: bool) -> None:
    """The digest is right, so that only the path can give it away."""
    outside = folder.parent / "outside.onnx"
    (folder / MODEL).rename(outside)
    (folder / MODEL).symlink_to(outside if absolute else Path("..") / outside.name)
    assert "link that points outside" in refused(folder)


def test_a_link_to_a_folder_outside(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "x.engine").write_bytes(b"engine")
    (folder / "engines").symlink_to(outside, target_is_directory=True)
    edit(folder, files={**document(folder)["files"], "engines/x.engine": sha256(outside / "x.engine")})
    assert "link that points outside" in refused(folder)


def test_a_link_inside_the_folder_is_fine(folder: Path) -> None:
    (folder / MODEL).rename(folder / "real.onnx")
    (folder / MODEL).symlink_to("real.onnx")
    assert Bundle.load(folder).file(MODEL).is_file()


def test_a_loop_of_links(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to(MODEL)
    assert "cannot be read" in refused(folder)


def test_a_name_that_no_file_system_takes(folder: Path) -> None:
    edit(folder, files={**document(folder)["files"], "x" * 5000: "0" * 64})
    assert "cannot be read" in refused(folder) or "missing" in refused(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b'"manifest"', b"1e999", b"[" * 100_000, b'{"schema_version": NaN}'],
)
def test_not_a_manifest(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    assert MANIFEST in refused(folder)


def test_a_manifest_too_large_to_be_one(folder: Path) -> None:
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(5 * 2**20)
    assert "not a manifest" in refused(folder)


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    edit(folder, schema_version=2, something_new={})
    assert "schema version 2; this edgemamba reads up to 1: upgrade it" in refused(folder)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ({"domain": "edgemamba", "name": "SelectiveScan", "version": 2}, "version 2; this installation knows"),
        ({"domain": "someone", "name": "SelectiveScan", "version": 1}, "needs operator someone::SelectiveScan"),
        ({"domain": "edgemamba", "name": "OtherScan", "version": 1}, "needs operator edgemamba::OtherScan"),
    ],
)
def test_an_unknown_operator(folder: Path, operator: dict[str, Any], message: str) -> None:
    edit(folder, operator=operator)
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"precision": "int3"}, "precision"),
        ({"unknown_field": 1}, "unknown_field"),
        ({"opset": "twenty"}, "opset"),
        ({"files": {MODEL: "00"}}, "64 hexadecimal digits"),
        ({"files": {MODEL: "G" * 64}}, "64 hexadecimal digits"),
        ({"files": []}, "files"),
        ({"preprocessing": {"size": [0, 224]}}, "preprocessing"),
        ({"input": None}, "input"),
        ({"class_names": [1, 2]}, "class_names"),
    ],
)
def test_a_broken_field_is_named(folder: Path, changes: dict[str, Any], field: str) -> None:
    edit(folder, **changes)
    assert field in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names: 2 names for 4 classes"),
        ({"class_names": list("abcde")}, "class_names: 5 names for 4 classes"),
        ({"outputs": []}, "outputs: there is none"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch"]}]}, "has no axis of classes"),
        ({"input": {"name": "frames", "dtype": "uint16", "shape": ["batch", 16, 16, 3]}}, "input: uint16"),
        (
            {"input": {"name": "frames", "dtype": "uint8", "shape": ["batch", 16, 32, 3]}},
            "makes uint8 (batch, 16, 16, 3)",
        ),
        ({"input": {"name": "frames", "dtype": "uint8", "shape": ["batch", 16, 16]}}, "makes uint8 (batch, 16, 16, 3)"),
        ({"preprocessing": {"size": [16, 16], "dtype": "float32"}}, "makes float32 (batch, 16, 16, 3)"),
        ({"preprocessing": {"size": [2000000, 2000000]}}, "preprocessing: size (2000000, 2000000) has more than"),
    ],
)
def test_parts_that_contradict_each_other(folder: Path, changes: dict[str, Any], message: str) -> None:
    """Each was an IndexError or a memory error at the first frame, or a wrong name, before the parts were compared."""
    edit(folder, **changes)
    assert message in refused(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in refused(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_manifest(folder: Path) -> None:
    (folder / MANIFEST).chmod(0)
    refused(folder)


def test_rewriting_keeps_the_manifest_whole(folder: Path) -> None:
    bundle = Bundle.load(folder)
    (folder / "parity.json").write_text("{}")
    changed = bundle.with_files("parity.json", created="2026-01-01T00:00:00+00:00")
    assert read_manifest(folder) == changed.manifest
    assert Bundle.load(folder).file("parity.json").read_text() == "{}"
    assert not list(folder.glob(".*")), "no temporary file is left"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, child in children for path in _paths(child, (*at, key)))]


@given(data=st.data(), replacement=JSON)
@example(data=None, replacement=None)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_edit_of_the_manifest_is_accepted_or_one_bundle_error(
    original: Path, tmp_path: Path, data: st.DataObject | None, replacement: Any
) -> None:
    """Replace any value at any depth by any JSON: never another exception, never a file outside the folder."""
    changed = copy.deepcopy(document(original))
    paths = _paths(changed)
    path = data.draw(st.sampled_from(paths)) if data is not None else ()
    if path:
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = replacement
    (tmp_path / MANIFEST).write_text(json.dumps(changed if path else replacement))
    if not (tmp_path / MODEL).exists():
        shutil.copy(original / MODEL, tmp_path / MODEL)
    try:
        bundle = Bundle.load(tmp_path)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        for name in bundle.manifest.files:
            assert bundle.file(name).resolve().is_relative_to(tmp_path.resolve())


@given(name=st.text(alphabet=st.sampled_from("./\\:ab\0 ~"), max_size=12))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_name_escapes(original: Path, name: str) -> None:
    changed = document(original)
    changed["files"][name] = "0" * 64
    folder = original.parent / "named"
    folder.mkdir(exist_ok=True)
    shutil.copy(original / MODEL, folder / MODEL)
    (folder / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(BundleError):
        Bundle.load(folder)
