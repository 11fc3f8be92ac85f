"""`edgemamba build` with the real TensorRT-RTX: parser, builder and our plugin, on a CPU. No engine is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from plugins_trt.wheels import headers_folder

from edgemamba.export import export
from edgemamba.plugins_trt.building import build as build_plugin
from edgemamba.runtime.bundle import MANIFEST, MODEL, Bundle
from edgemamba.runtime.errors import EngineError
from edgemamba.train import create_model

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is in the trt-dev extra")

MODELS = ("vim_tiny", "medmamba_t", "mambavision_t")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    try:
        build_plugin(headers_folder(), folder)
    except EngineError as error:
        pytest.skip(str(error))
    return folder


def edgemamba(*arguments: object, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; without ``plugins`` there is no plugin on the machine."""
    environment = {**os.environ, "EDGEMAMBA_TRT_PLUGIN_DIR": str(plugins or "/nonexistent"), "COLUMNS": "200"}
    environment["XDG_DATA_HOME"] = "/nonexistent"
    command = [sys.executable, "-m", "edgemamba", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("vim_tiny", num_classes=3, depth=1, embed_dim=32, img_size=32).eval()
    return export(model, tmp_path_factory.mktemp("small") / "bundle").path


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_full_size_engine_with_the_plugin_inside(name: str, plugins: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = export(create_model(name).eval(), tmp_path / name).path
    done = edgemamba("build", folder, "--backend", "tensorrt-rtx", "--json", plugins=plugins)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["plugin"].startswith("libedgemamba_trt")
    assert record["backend"] == "tensorrt-rtx"
    engine = folder / record["file"]
    # A field of the plugin's that only an engine holds: the layer is in it, not the function.
    assert b"workspace_bytes" in engine.read_bytes()
    manifest = Bundle.load(folder).manifest  # its digests hold
    assert [card.file for card in manifest.engines] == [record["file"]]
    assert record["file"] in manifest.files


def test_a_second_build_replaces_the_engine(bundle: Path, plugins: Path) -> None:
    for shapes in ("1", "1/2/4"):
        done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", "--shapes", shapes, "--json", plugins=plugins)
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        wanted = [int(n) for n in shapes.split("/")]
        assert [shape[0] for shape in record["shapes"]] == (wanted if len(wanted) == 3 else wanted * 3)
    assert len(Bundle.load(bundle).manifest.engines) == 1
    assert len(list((bundle / "engines").iterdir())) == 1


def test_for_named_gpus_and_without_the_plugin(bundle: Path, plugins: Path) -> None:
    done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", "--sm", "86,89", "--json", plugins=plugins)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compute_capabilities"] == ["8.6", "8.9"]
    done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", "--no-plugin", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugin"] == ""
    assert len(Bundle.load(bundle).manifest.engines) == 2


def test_half_precision(plugins: Path, tmp_path: Path) -> None:
    """In the graph's own types, which TensorRT-RTX keeps: the scan's values in float16, its parameters in float32."""
    torch.manual_seed(0)
    model = create_model("vim_tiny", num_classes=3, depth=1, embed_dim=32, img_size=32).eval()
    folder = export(model, tmp_path / "half", precision="fp16").path
    build = (
        "build",
        folder,
        "--backend",
        "tensorrt-rtx",
        "--precision",
        "fp16",
        "--shapes",
        "2",
        "--sm",
        "86",
        "--json",
    )
    done = edgemamba(*build, plugins=plugins)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["precision"] == "fp16"
    assert [shape[0] for shape in record["shapes"]] == [2, 2, 2]
    assert record["compute_capabilities"] == ["8.6"]
    assert b"workspace_bytes" in (folder / record["file"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the TensorRT plugin"),
        (("--sm", "99"), "--sm 99"),
        (("--sm", "x"), "--sm"),
        (("--precision", "bf16"), "--precision bf16"),
        (("--shapes", "4/2/1"), "--shapes 4/2/1"),
        (("--shapes", "1/2"), "--shapes 1/2"),
        (("--shapes", "1x64x64/1x64x64/1x64x64"), "--shapes"),
    ],
    ids=["plugin", "sm", "sm-word", "precision", "shapes-order", "shapes-two", "shapes-fixed-size"],
)
def test_what_cannot_be_built_is_one_line_and_leaves_the_bundle(
    bundle: Path, arguments: tuple[str, ...], message: str, plugins: Path
) -> None:
    before = (bundle / MANIFEST).read_bytes()
    done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", *arguments, plugins=plugins if arguments else None)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert (bundle / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in bundle.rglob("*.engine")) == []
    assert Bundle.load(bundle).file(MODEL).is_file()


def test_the_same_build_as_commands(bundle: Path, plugins: Path) -> None:
    done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", "--print-commands", plugins=plugins)
    assert done.returncode == 0, done.stderr
    assert "polygraphy convert" in done.stdout
    assert not (bundle / "engines").exists()

    pytest.importorskip("polygraphy", reason="polygraphy is in the trt-dev extra")
    # All of it as a person would paste it; a real build through our autoload library.
    (bundle / "engines").mkdir()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pasted = subprocess.run(
        done.stdout, shell=True, capture_output=True, text=True, check=False, env=environment, timeout=280
    )
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    (engine,) = (bundle / "engines").iterdir()
    assert b"workspace_bytes" in engine.read_bytes()


@pytest.mark.parametrize("verb", [("bench",), ("run", "--source", "picture.png")], ids=lambda verb: verb[0])
def test_a_built_engine_is_refused_politely_where_there_is_no_gpu(
    bundle: Path, plugins: Path, verb: tuple[str, ...]
) -> None:
    picture = bundle.parent / "picture.png"
    cv2.imwrite(str(picture), np.zeros((32, 32, 3), np.uint8))
    verb = tuple(str(picture) if word == picture.name else word for word in verb)
    done = edgemamba("build", bundle, "--backend", "tensorrt-rtx", plugins=plugins)
    assert done.returncode == 0, done.stderr
    done = edgemamba(verb[0], bundle, *verb[1:], "--backend", "tensorrt-rtx", plugins=plugins)
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "backend tensorrt-rtx cannot be used here" in done.stderr
