"""Two processes on CPUs (gloo): the curve of one process, accidents, and sharding. Started as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import arguments, figures, tiny, tiny_vim, write_npz

from edgemamba.train.history import read_history
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WORKER = Path(__file__).parent / "scale_worker.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1])}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Of the runs that are broken off: all that draws random numbers; 4 batches, 2 updates an epoch, a checkpoint after each.
ACCIDENTS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "mixup": 0.3,
    "drop_path": 0.2,
    "ema_decay": 0.9,
    "devices": "auto",
    "checkpoint_minutes": 1e-6,
}


@dataclass(frozen=True)
class Run:
    """A run of a plan: what it did on each of two ranks."""

    settings: TrainingSettings
    losses: list[dict[int, float]]


@dataclass(frozen=True)
class Gang:
    """What torchrun left of a plan."""

    status: int
    printed: str
    runs: dict[str, Run]


def torchrun(folder: Path, plan: dict[str, tuple[TrainingSettings, str, bool]]) -> Gang:
    """Run a plan (name -> settings, accident, whether it is resumed) in two processes."""
    file = folder / "plan.json"
    steps = []
    for settings, accident, resumed in plan.values():
        resume = ["--resume", "auto"] if resumed else []
        steps.append({"arguments": [*arguments(settings), *resume], "accident": accident})
    file.write_text(json.dumps(steps))
    command = [*TORCHRUN, str(WORKER), str(file)]
    done = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=200, check=False)

    def losses(number: int, rank: int) -> dict[int, float]:
        found = json.loads(file.with_suffix(f".{number}.{rank}.json").read_text())
        return {int(batch): loss for batch, loss in found.items()}

    runs = {}
    for number, (name, (settings, _, _)) in enumerate(plan.items()):
        if file.with_suffix(f".{number}.0.json").exists():
            runs[name] = Run(settings, [losses(number, rank) for rank in range(2)])
    return Gang(done.returncode, done.stderr, runs)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz", train=32, val=13)


@pytest.fixture(scope="module")
def gangs(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Gang, Gang]:
    """A gang whose second process is killed, and a second one that takes up the run, among others."""
    out = tmp_path_factory.mktemp("runs")

    def settings(name: str, **changes: Any) -> TrainingSettings:
        return tiny_vim(npz, out / name, **(ACCIDENTS | changes))

    killed = torchrun(tmp_path_factory.mktemp("first"), {"killed": (settings("parts"), "kill:1:6", False)})
    later = torchrun(
        tmp_path_factory.mktemp("second"),
        {
            "resumed": (settings("parts"), "none", True),
            "whole": (settings("whole"), "none", False),
            "sharded": (settings("sharded", strategy="fsdp"), "none", False),
            "interrupted": (settings("sharded_parts", strategy="fsdp"), "interrupt:1:4", False),
            "went on": (settings("sharded_parts", strategy="fsdp"), "none", True),
            "batch norms": (tiny(npz, out / "norms", epochs=1, ema=False, devices="auto"), "none", False),
            "sharded norms": (
                tiny(npz, out / "sharded_norms", epochs=1, devices="auto", strategy="fsdp"),
                "none",
                False,
            ),
        },
    )
    return killed, later


def state(settings: TrainingSettings) -> dict[str, torch.Tensor]:
    """The average and the trained weights in a run's last checkpoint."""
    content = torch.load(settings.last, weights_only=True)
    return {f"{key}.{name}": x for key in ("state_dict", "trained_state_dict") for name, x in content[key].items()}


def assert_same_end(one: TrainingSettings, other: TrainingSettings, rtol: float) -> None:
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=rtol * 1e-2, msg=name)
    rows = [read_history(settings.folder / "metrics.csv") for settings in (one, other)]
    assert figures(rows[0]) == pytest.approx(figures(rows[1]), rel=max(rtol, 1e-6))


def test_a_killed_worker_ends_the_run_and_the_next_resumes_it_exactly(gangs: tuple[Gang, Gang]) -> None:
    killed, later = gangs
    assert killed.status != 0
    assert "Signal 9 (SIGKILL)" in killed.printed
    assert "another process of this run ended" in killed.printed
    assert later.status == 0, later.printed
    first, resumed, whole = killed.runs["killed"], later.runs["resumed"], later.runs["whole"]
    assert sorted(whole.losses[0]) == list(range(12))
    for rank in range(2):
        # Killed in batch 6, the first of update 4; the checkpoint is of update 3, after batch 5.
        assert max(first.losses[1]) == 5
        assert sorted(resumed.losses[rank]) == list(range(6, 12))
        assert first.losses[rank] | resumed.losses[rank] == whole.losses[rank]
    assert_same_end(resumed.settings, whole.settings, rtol=0)
    assert not list(resumed.settings.checkpoints.glob(".*"))


def test_shares_train_as_whole_models_do(gangs: tuple[Gang, Gang]) -> None:
    """FSDP and DDP, with a moving average, clipping and accumulation."""
    _, later = gangs
    assert later.status == 0, later.printed
    sharded, whole = later.runs["sharded"], later.runs["whole"]
    for rank in range(2):
        assert sharded.losses[rank] == pytest.approx(whole.losses[rank], rel=1e-4)
    assert_same_end(sharded.settings, whole.settings, rtol=1e-2)


def test_ctrl_c_for_one_rank_stops_all_and_shares_resume_exactly(gangs: tuple[Gang, Gang]) -> None:
    _, later = gangs
    assert "run 3 ended with 130" in later.printed
    interrupted, resumed, whole = (later.runs[name] for name in ("interrupted", "went on", "sharded"))
    for rank in range(2):
        # The interrupt came in batch 4, and the update ends with batch 5.
        assert sorted(interrupted.losses[rank]) == list(range(6))
        assert interrupted.losses[rank] | resumed.losses[rank] == whole.losses[rank]
    assert_same_end(resumed.settings, whole.settings, rtol=0)


def test_two_devices_give_the_curve_of_one_with_the_double_batch(npz: Path, tmp_path: Path) -> None:
    """Lightning's own launcher; every validation picture (13: uneven) counts once. The model has layer norms only."""
    options: dict[str, Any] = {"epochs": 2, "ema_decay": 0.9, "batch_size": 16}
    one = train(tiny_vim(npz, tmp_path / "one", **options))
    assert one is not None
    settings = tiny_vim(npz, tmp_path / "two", **(options | {"devices": "2", "batch_size": 8}))
    command = [sys.executable, "-m", "edgemamba", *arguments(settings)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 x CPU" in done.stderr
    assert "n = 13" in done.stderr
    assert figures(read_history(settings.folder / "metrics.csv")) == pytest.approx(figures(one.history), rel=1e-4)


@pytest.mark.parametrize("name", ["batch norms", "sharded norms"])
def test_batch_norms_of_two_ranks_agree_in_validation(gangs: tuple[Gang, Gang], name: str) -> None:
    """Each rank's batch norms see its own pictures; what is validated (of shares the average) is what the checkpoint holds."""
    _, later = gangs
    assert later.status == 0, later.printed
    folder = later.runs[name].settings.folder
    (row,) = read_history(folder / "metrics.csv")
    summary = json.loads((folder / "summary.json").read_text())
    assert row["val_loss"] == pytest.approx(summary["val"]["loss"], rel=1e-5)
