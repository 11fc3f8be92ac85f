"""Options and fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# OpenMP's threads (PyTorch's) wait for each other by spinning, which on a shared machine was seen to make a training step
# thirty times slower. Read when torch is first imported, here and in the tests' subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BUNDLED_GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=None,
        help="a folder of golden cases (<family>/<case>.safetensors + .json); default: the subset in tests/golden",
    )


def golden_folder(config: pytest.Config) -> Path:
    """The folder of golden cases that this run was given."""
    folder: Path = config.getoption("--golden") or BUNDLED_GOLDEN
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config)
