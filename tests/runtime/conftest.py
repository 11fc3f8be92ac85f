"""A bundle small enough to build in a test, and an engine that needs no backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemamba.runtime import cli
from edgemamba.runtime.bundle import MODEL, Bundle, Manifest, ModelCard, TensorCard, sha256, write_manifest
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.preprocessing import Preprocessing

COLOURS = ("red", "green", "blue")
SIZE = 32
GAIN = 8.0


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph says which colour a picture has: logits are 8 times the mean of each channel."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["frames"], ["values"], to=types.FLOAT),
            helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "gain"], ["logits"]),
        ],
        "colour",
        [helper.make_tensor_value_info("frames", types.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("axes", types.INT64, [2], [1, 2]),
            helper.make_tensor("gain", types.FLOAT, [], [GAIN / 255]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder = tmp_path_factory.mktemp("bundle") / "colour"
    folder.mkdir()
    onnx.save(model, folder / MODEL)
    manifest = Manifest(
        model=ModelCard(name="colour"),
        input=TensorCard(name="frames", dtype="uint8", shape=("batch", SIZE, SIZE, 3)),
        outputs=(TensorCard(name="logits", dtype="float32", shape=("batch", 3)),),
        preprocessing=Preprocessing(size=(SIZE, SIZE), resize="squash", mean=(0, 0, 0), std=(1, 1, 1)),
        class_names=COLOURS,
        precision="fp32",
        opset=20,
        files={MODEL: sha256(folder / MODEL)},
    )
    write_manifest(folder, manifest)
    return folder


class ColourEngine(Engine):
    """The bundle's graph in NumPy, which counts its batches and can be made to fail."""

    backend = "numpy"

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.batches: list[int] = []
        self.before_batch: Callable[[int], None] = lambda number: None

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def infer(self, frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        self.before_batch(len(self.batches))
        self.batches.append(len(frames))
        return {"logits": (frames.astype(np.float32).mean(axis=(1, 2)) * np.float32(GAIN / 255)).astype(np.float32)}


@pytest.fixture
def colour_engine(colour_bundle: Path) -> ColourEngine:
    return ColourEngine(Bundle.load(colour_bundle))


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """pydicom warns of values in its own test files that are not by the standard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twenty frames of red, then twenty of green."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 240))
    for i in range(40):
        writer.write(np.full((240, 320, 3), (0, 0, 255) if i < 20 else (0, 255, 0), np.uint8))
    writer.release()
    return path


@pytest.fixture
def run(colour_bundle: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the verb in this process; exit code, stdout, stderr."""

    def call(*arguments: str | Path, bundle: Path = colour_bundle) -> tuple[int, str, str]:
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main(["run", str(bundle), "--backend", "ort-function", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return call
