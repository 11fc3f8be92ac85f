"""Engines by TensorRT-RTX's real parser and builder on a CPU, with the plugin inside; the library runs in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugins_trt.wheels import headers_folder
from scan_bundle import write_scan_bundle

from edgemamba.export.building.engine import build_engine
from edgemamba.export.building.options import BuildOptions
from edgemamba.plugins_trt.building import build
from edgemamba.plugins_trt.headers import find_headers
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.cli import main
from edgemamba.runtime.trt_plugin import ENVIRONMENT

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is in the extra trt-dev (Linux on x86-64)")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    build(find_headers(headers_folder()).folder, folder)
    return folder


@pytest.mark.parametrize(
    "name", ["local_vim_t", "efficientvmamba_t"]
)  # test_build_command.py builds three full-size ones
def test_models_with_the_plugin_inside(
    name: str, plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="the exporter needs torch")
    from small_models import SIDE, small_model

    from edgemamba.export import export

    monkeypatch.setenv(ENVIRONMENT, str(plugins))
    bundle = export(small_model(name), tmp_path / name, image_size=SIDE)
    steps: list[str] = []
    card = build_engine(bundle, BuildOptions("tensorrt-rtx", sm=(86, 89), shapes="1/2/4"), progress=steps.append)
    assert card.plugin
    assert card.compute_capabilities == ("8.6", "8.9")
    assert [shape[0] for shape in card.shapes] == [1, 2, 4]
    assert len(steps) > 2
    read = Bundle.load(bundle.path)
    assert read.manifest.engines == (card,)
    # A field of the plugin's that only engines have.
    assert b"workspace_bytes" in read.file(card.file).read_bytes()


def test_no_plugin_builds_the_function(tmp_path: Path) -> None:
    bundle = write_scan_bundle(tmp_path / "tiny")
    card = build_engine(bundle, BuildOptions("tensorrt-rtx", sm=(86,), plugin=False))
    assert card.plugin == ""
    assert b"workspace_bytes" not in Bundle.load(bundle.path).file(card.file).read_bytes()


def test_an_engine_is_politely_refused_without_a_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgemamba.runtime.engines import cuda_driver

    if cuda_driver.unavailable() is None:
        pytest.skip("there is a GPU here")
    bundle = write_scan_bundle(tmp_path / "tiny")
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(bundle.path), "--backend", "tensorrt-rtx"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tensorrt-rtx cannot be used here" in line
