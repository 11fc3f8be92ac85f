"""Polygraphy's comparator on a bundle: the script of docs/tensorrt.md, as it is printed there, with a CPU backend in the place of
the engine's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scan_bundle import write_scan_bundle

DOCS = Path(__file__).parents[2] / "docs" / "tensorrt.md"


@pytest.mark.parametrize(("bar", "status"), [("1e-4", 0), ("1e-12", 1)], ids=["within", "beyond"])
def test_the_documented_comparison(bar: str, status: int, tmp_path: Path) -> None:
    """Two runtimes do not round alike, so that a bar of nothing is missed: the comparator did compare."""
    pytest.importorskip("polygraphy", reason="polygraphy is in the trt-dev extra")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is the other side of the comparison")
    (script,) = re.findall(r"```python\n(# compare\.py\n.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "compare.py").write_text(script)
    bundle = write_scan_bundle(tmp_path / "bundle")
    command = [sys.executable, str(tmp_path / "compare.py"), str(bundle.path), "ort-cpu", bar]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert ("PASSED" if status == 0 else "FAILED") in said
