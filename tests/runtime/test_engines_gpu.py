"""Engines on a real GPU against ONNX Runtime's CPU with our kernel, the reference of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scan_bundle import write_scan_bundle

from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines import backend_class, load

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
def test_an_engine_gives_what_the_cpu_gives(backend: str, tmp_path: Path) -> None:
    reason = backend_class(backend).unavailable() or backend_class("ort-cpu").unavailable()
    if reason:
        pytest.skip(reason)
    bundle = write_scan_bundle(tmp_path / "bundle")
    if backend.startswith("tensorrt"):
        from edgemamba.export.building.engine import build_engine
        from edgemamba.export.building.options import BuildOptions

        build_engine(bundle.path, BuildOptions(backend, shapes="1/2/4"))  # type: ignore[arg-type]
    card = Bundle.load(bundle.path).manifest.input
    generator = np.random.default_rng(0)
    with load(bundle.path, backend) as engine, load(bundle.path, "ort-cpu") as reference:
        # Repeated shapes, which are captured as a graph; other shapes; more than an engine's largest batch.
        for count in (1, 1, 1, 3, 4, 7):
            frames = generator.integers(0, 256, (count, *card.shape[1:]), np.uint8)
            for name, expected in reference.infer(frames).items():
                np.testing.assert_allclose(engine.infer(frames)[name], expected, rtol=1e-4, atol=1e-4)
