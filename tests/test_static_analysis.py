"""Type checkers resolve `edgemamba.*` from a plain checkout, with nothing installed: planted errors are caught."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One error in each portion of the namespace; an unresolved import would make all three silently `Any`.
PLANTED = """
from edgemamba.export import verify
from edgemamba.runtime.frames import Frame
from edgemamba.train import list_models

height: str = Frame.height.fget(None)
names: int = list_models("vim*")
report: int = verify("bundle")
frame = Frame(pixels=1, index="first", timestamp=0.0, source="clip")
"""


@pytest.mark.slow
def test_mypy_sees_every_portion_from_a_checkout(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is in the dev extra")
    snippet = tmp_path / "planted.py"
    snippet.write_text(PLANTED)
    # -I: no site of the caller's working directory; the three roots come from pyproject.toml alone.
    command = [
        sys.executable,
        "-I",
        "-m",
        "mypy",
        "--config-file",
        "pyproject.toml",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    # The configured package list would be checked as well; a file on the command line replaces it.
    done = subprocess.run([*command, str(snippet)], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "planted.py" in line and "error" in line]
    lines = sorted({int(line.split(":")[1]) for line in found})
    assert lines[-3:] == [7, 8, 9], done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_sees_every_portion_from_a_checkout(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="pyright is in the dev extra")
    snippet = tmp_path / "planted.py"
    snippet.write_text(PLANTED)
    # From the checkout, whose pyproject.toml it reads; a file on the command line replaces the configured folders.
    command = [sys.executable, "-m", "pyright", "--outputjson", str(snippet)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}
    assert lines == {6, 7, 8, 9}, done.stdout
