"""Accumulation, mixed precision, and checkpoints that accidents do not spoil: in one process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import arguments, before_batch, figures, tiny, tiny_vim, write_npz

from edgemamba.runtime.errors import DataError, TrainingError
from edgemamba.train.checkpoint_writing import write_checkpoint
from edgemamba.train.classifier import Classifier
from edgemamba.train.data.ranks import RankedLoaders
from edgemamba.train.distribution import Sharded, blocks, trainer_options
from edgemamba.train.registry import create_model
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import TrainingResult, train

pytestmark = pytest.mark.usefixtures("one_thread")
WORKER = Path(__file__).parent / "scale_worker.py"
# All that draws random numbers, and all that a checkpoint must hold.
EVERYTHING: dict[str, Any] = {"accumulate": 2, "batch_size": 4, "mixup": 0.3, "drop_path": 0.2, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz")


def run(settings: TrainingSettings, resume: str | None = None) -> TrainingResult:
    result = train(settings, resume=resume)
    assert result is not None
    return result


def test_accumulated_batches_are_one_batch(npz: Path, tmp_path: Path, losses: dict[int, float]) -> None:
    whole = run(tiny_vim(npz, tmp_path / "whole", epochs=2))
    expected = dict(losses)
    losses.clear()
    parts = run(tiny_vim(npz, tmp_path / "parts", epochs=2, batch_size=4, accumulate=2))
    assert figures(parts.history) == pytest.approx(figures(whole.history), rel=1e-4)
    assert [row["step"] for row in parts.history] == [3, 6]
    means = [(losses[2 * step] + losses[2 * step + 1]) / 2 for step in range(6)]
    assert means == pytest.approx([expected[step] for step in range(6)], rel=1e-5)


def test_killed_in_the_middle_of_a_write(npz: Path, tmp_path: Path, losses: dict[int, float]) -> None:
    """Six batches, three updates an epoch; a checkpoint after each update. The sixth is torn: the one after update 5."""
    settings = tiny_vim(npz, tmp_path / "whole", epochs=3, checkpoint_minutes=1e-6, **EVERYTHING)
    whole = run(settings)
    expected = dict(losses)
    assert sorted(expected) == list(range(18))

    settings = settings.model_copy(update={"out": str(tmp_path / "parts")})
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([{"arguments": arguments(settings), "accident": "tear:5"}]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1])}
    done = subprocess.run([sys.executable, WORKER, plan], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (part,) = settings.checkpoints.glob(".last.ckpt.*.part")
    assert part.stat().st_size > 10_000
    assert torch.load(settings.last, weights_only=True)["global_step"] == 4
    assert torch.load(settings.checkpoints / "best.ckpt", weights_only=True)["global_step"] == 3

    losses.clear()
    resumed = run(settings, "auto")
    assert not part.exists()
    # Update 4 was the first of the second epoch; the next batch is its third.
    assert sorted(losses) == list(range(8, 18))
    assert losses == {batch: expected[batch] for batch in losses}
    assert figures(resumed.history) == pytest.approx(figures(whole.history), rel=1e-6)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_sigterm_saves_as_ctrl_c_does(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate() -> None:
        assert callable(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)

    settings = tiny_vim(npz, tmp_path / "run", epochs=1, **EVERYTHING)
    monkeypatch.setattr(Classifier, "on_train_batch_start", before_batch(2, terminate))
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    # Update 1 is over with batch 1; the one that batch 2 began is ended before the checkpoint.
    assert torch.load(settings.last, weights_only=True)["global_step"] == 2


@contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """A limit to the size of files, which fails writes as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"x": torch.ones(3)}, path)
    with no_room_for(50_000), pytest.raises(TrainingError, match=r"last\.ckpt cannot be written: .*intact"):
        write_checkpoint({"x": torch.zeros(1_000_000)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_says_so_and_goes_on_later(npz: Path, tmp_path: Path) -> None:
    settings = tiny_vim(npz, tmp_path / "run", epochs=1)
    with no_room_for(20_000), pytest.raises(TrainingError, match=r"best\.ckpt cannot be written"):
        train(settings)
    assert list(settings.checkpoints.iterdir()) == []
    run(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 1}, "--accumulate 2"),
        ({"strategy": "ddp"}, "--strategy auto"),
        ({"checkpoint_minutes": 5.0, "compile": True}, None),
    ],
)
def test_resumed_with_other_options(npz: Path, tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    settings = tiny_vim(npz, tmp_path / "run", epochs=1, **EVERYTHING)
    run(settings)
    other = tiny_vim(npz, tmp_path / "run", epochs=1, **(EVERYTHING | changes))
    with pytest.raises(TrainingError, match=message or "complete"):
        train(other, resume="auto")


def test_resumed_on_another_number_of_devices(npz: Path, tmp_path: Path) -> None:
    settings = tiny_vim(npz, tmp_path / "run", epochs=1)
    run(settings)
    content = torch.load(settings.last, weights_only=True)
    torch.save(content | {"edgemamba_world_size": 2}, settings.last)
    with pytest.raises(TrainingError, match="trained on 2 devices and this run has 1"):
        train(tiny_vim(npz, tmp_path / "run", epochs=2), resume="auto")


def test_bfloat16(npz: Path, tmp_path: Path) -> None:
    exact = run(tiny_vim(npz, tmp_path / "32", epochs=2))
    mixed = run(tiny_vim(npz, tmp_path / "bf16", epochs=2, precision="bf16-mixed"))
    assert mixed.val.loss == pytest.approx(exact.val.loss, rel=0.02)
    assert mixed.val.loss != exact.val.loss
    assert all(parameter.dtype == torch.float32 for parameter in mixed.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True, "strategy": "fsdp"}, "--compile and --strategy fsdp"),
        ({"precision": "16-mixed", "strategy": "fsdp"}, "bf16-mixed"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trainer_options(tiny(Path("x"), Path("y"), **changes))


@pytest.mark.parametrize("changes", [{"accumulate": 0}, {"checkpoint_minutes": -1}, {"strategy": "zero"}])
def test_options_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"--{next(iter(changes)).replace('_', '-')} is"):
        tiny(Path("x"), Path("y"), **changes)


def test_the_processes_of_torchrun_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)

    def options(**changes: Any) -> dict[str, Any]:
        return trainer_options(tiny(Path("x"), Path("y"), **changes))

    assert options(devices="auto") == {"devices": "4", "num_nodes": 2, "strategy": "auto"}
    assert isinstance(options(devices="4", strategy="fsdp")["strategy"], Sharded)
    with pytest.raises(TrainingError, match="torchrun started 4 processes"):
        options(devices="2")
    with pytest.raises(TrainingError, match="torchrun started 2 machines"):
        options(devices="auto", nodes=3)


def test_several_machines_need_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, a process would wait for the others for ever."""
    for name in ("NODE_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match="--nodes is 2: start the run on every machine with torchrun"):
        trainer_options(tiny(Path("x"), Path("y"), nodes=2))


def test_fewer_pictures_to_validate_on_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    data = RankedLoaders(batch_size=1, workers=0, seed=0)
    monkeypatch.setattr(data, "place", lambda: (4, 3))
    assert list(data.share(4)) == [3]
    with pytest.raises(DataError, match="3 to validate on cannot be shared by 4 devices"):
        data.share(3)


def test_blocks_to_shard() -> None:
    names = {
        "vim_tiny": {"depth": 3, "embed_dim": 16},
        "medmamba_t": {"dims": (8, 16), "depths": (1, 2)},
        "efficientvmamba_t": {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)},
    }
    kinds = {
        name: [type(block).__name__ for block in blocks(create_model(name, num_classes=2, img_size=64, **options))]
        for name, options in names.items()
    }
    assert kinds == {
        "vim_tiny": ["VimBlock"] * 3,
        "medmamba_t": ["SSConvSSM"] * 3,
        "efficientvmamba_t": ["EVSSBlock"] * 2 + ["ConvStage"] * 2,
    }
