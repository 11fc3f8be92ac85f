"""The house keeps its shape: arrows between folders point one way, every folder says what lives in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_imports_point_one_way() -> None:
    """import-linter's contracts in pyproject.toml: runtime <- train <- export, no torch or onnx in runtime."""
    pytest.importorskip("importlinter", reason="import-linter is in the dev extra")
    linter = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "folder", ["kernels", "plugins_trt", "runtime", "export", "train", "tests", "examples", "benchmarks", "docs"]
)
def test_every_folder_says_what_lives_in_it(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert 3 <= len(text.splitlines()) <= 80


def test_there_is_no_root_package() -> None:
    """One `edgemamba/__init__.py` would hide the other two portions of the namespace (docs/development.md)."""
    assert [str(path) for path in ROOT.glob("*/edgemamba/__init__.py")] == []
