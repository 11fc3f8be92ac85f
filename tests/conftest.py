"""Options and fixtures that every test folder shares."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# OpenMP's threads (PyTorch's) wait for each other by spinning, which on a shared machine was seen to make a training step
# thirty times slower. Read when torch is first imported, here and in the tests' subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell ignores SIGINT for what it runs in the background, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BUNDLED_GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=None,
        help="a folder of golden cases (<family>/<case>.safetensors + .json); default: the subset in tests/golden",
    )
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=0.0,
        help="how long each fuzz test goes on; default: a few hundred examples, always the same",
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="another number: other examples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fuzz tests may take as long as they are told to."""
    if seconds := config.getoption("--fuzz-seconds"):
        for item in items:
            if "fuzzing" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(300 + 3 * seconds))


@dataclass(frozen=True)
class Fuzzing:
    """For how many seconds a fuzz test goes on (0: one round), and the seed of its first round."""

    seconds: float
    seed: int

    def rounds(self) -> Iterator[int]:
        """Seeds, one for each round: at least one, and no new one after the time is up."""
        end = time.monotonic() + self.seconds
        for seed in itertools.count(self.seed):
            yield seed
            if time.monotonic() >= end:
                return


@pytest.fixture(scope="session")
def fuzzing(request: pytest.FixtureRequest) -> Fuzzing:
    return Fuzzing(request.config.getoption("--fuzz-seconds"), request.config.getoption("--fuzz-seed"))


def golden_folder(config: pytest.Config) -> Path:
    """The folder of golden cases that this run was given."""
    folder: Path = config.getoption("--golden") or BUNDLED_GOLDEN
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config)
