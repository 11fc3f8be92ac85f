"""Training runs: that they learn, that they resume exactly, and that what they leave is complete."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from training_toys import CLASSES, RUN_FILES, before_batch, files_of, tiny, write_npz

from edgemamba.runtime.errors import CheckpointError, DataError, TrainingError
from edgemamba.train.averaging import MovingAverage
from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.classifier import Classifier
from edgemamba.train.data import open_dataset
from edgemamba.train.data.loading import EpochSampler, ResumableLoader, TrainingItems
from edgemamba.train.data.module import PicturesModule
from edgemamba.train.history import read_history
from edgemamba.train.training import TrainingResult, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz", test=9, class_names=np.array(CLASSES))


def run(*arguments: Any, **keywords: Any) -> TrainingResult:
    result = train(*arguments, **keywords)
    assert result is not None
    return result


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Press Ctrl-C during the given training step."""

    def at(step: int) -> None:
        hook = before_batch(step, lambda: os.kill(os.getpid(), signal.SIGINT))
        monkeypatch.setattr(Classifier, "on_train_batch_start", hook)

    return at


def test_a_run_leaves_all_it_promises(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(tiny(npz, out, epochs=2))
    names = files_of(out)
    assert names >= RUN_FILES
    assert any(name.startswith("tensorboard/events") for name in names)
    assert [row["epoch"] for row in read_history(out / "metrics.csv")] == [0, 1]
    assert Image.open(out / "curves.png").size[0] > 500
    assert result.test is not None
    assert result.test.count == 9

    model, class_names, preprocessing = read_training_checkpoint(result.best)
    assert tuple(class_names) == CLASSES
    assert preprocessing.size == (32, 32)
    assert preprocessing.dtype == "uint8"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(pixels), result.model.eval()(pixels))


def test_checkpoints_hold_no_code(npz: Path, tmp_path: Path) -> None:
    result = run(tiny(npz, tmp_path / "run", epochs=1))
    for path in (result.best, result.last):
        content = torch.load(path, weights_only=True)
        assert content["edgemamba"]["model_name"] == "medmamba_t"


def test_it_learns(npz: Path, tmp_path: Path) -> None:
    """Overfits two dozen pictures: the loss falls to nearly nothing, and the held-out stripes are told apart."""
    result = run(
        tiny(
            npz,
            tmp_path / "run",
            epochs=20,
            lr=5e-3,
            label_smoothing=0.0,
            ema=False,
            augmentation={"crop_scale": 0.9, "hflip": 0.5, "color_jitter": 0.0},
        )
    )
    assert result.history[0]["train_loss"] > 0.8
    assert result.history[-1]["train_loss"] < 0.1
    assert result.val.top1 == 1.0
    assert result.val.auc == 1.0


def test_it_overfits_64_pictures_to_nothing(tmp_path: Path) -> None:
    """Noise with labels drawn by lot: nothing can be generalised, every gradient of a small Vim must be right to learn it."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 32, 32, 3)).astype(np.uint8), rng.permutation(np.arange(64) % 4)
    npz = tmp_path / "noise.npz"
    np.savez(npz, train_images=images, train_labels=labels, val_images=images, val_labels=labels)
    result = run(
        tiny(
            npz,
            tmp_path / "run",
            model="vim_tiny",
            config={"embed_dim": 48, "depth": 2, "patch_size": 8, "stride": 8, "d_state": 8},
            epochs=25,
            lr=5e-3,
            batch_size=16,
            weight_decay=0.0,
            drop_path=0.0,
            label_smoothing=0.0,
            ema=False,
            monitor="loss",
            augmentation={"enabled": False},
        )
    )
    assert result.history[0]["train_loss"] > 1.0
    assert result.history[-1]["train_loss"] < 0.01
    # Batches that were trained on, as they were trained on: the loss of what is saved is as small.
    assert result.val.loss < 0.01
    assert result.val.top1 == 1.0


def test_same_seed_same_losses_with_and_without_workers(npz: Path, tmp_path: Path, losses: dict[int, float]) -> None:
    run(tiny(npz, tmp_path / "a", epochs=2))
    first = dict(losses)
    losses.clear()
    run(tiny(npz, tmp_path / "b", epochs=2, workers=2))
    assert losses == pytest.approx(first, rel=1e-5)
    losses.clear()
    run(tiny(npz, tmp_path / "c", epochs=2, seed=1))
    assert losses != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(("step", "workers"), [(4, 0), (4, 2), (2, 0), (5, 0)])
def test_interrupted_runs_resume_exactly(
    npz: Path, tmp_path: Path, losses: dict[int, float], interrupt: Any, step: int, workers: int
) -> None:
    """Three steps an epoch: step 2 and 5 are the last of theirs, step 4 is in the middle of the second."""
    options: dict[str, Any] = {"epochs": 3, "workers": workers, "drop_path": 0.3, "mixup": 0.2, "monitor": "loss"}
    whole = run(tiny(npz, tmp_path / "whole", **options))
    expected = dict(losses)
    assert sorted(expected) == list(range(9))
    losses.clear()

    out = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", Classifier.on_train_batch_start)
        interrupt(step)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(npz, out, **options))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sorted(losses) == list(range(step + 1))
    with pytest.raises(TrainingError, match="--resume auto"):
        train(tiny(npz, out, **options))
    resumed = run(tiny(npz, out, **options), resume="auto")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2]
    for name in ("val_loss", "val_auc", "lr", "step"):
        assert [row[name] for row in resumed.history] == pytest.approx([row[name] for row in whole.history], rel=1e-5)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_resumed_for_more_epochs(npz: Path, tmp_path: Path, losses: dict[int, float]) -> None:
    settings = tiny(npz, tmp_path / "run", epochs=1)
    run(settings)
    with pytest.raises(TrainingError, match="complete"):
        train(settings, resume="auto")
    longer = run(tiny(npz, tmp_path / "run", epochs=2), resume="auto")
    assert sorted(losses) == list(range(6))
    assert longer.history[-1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": 1e-4}, "--lr 0.003"), ({"batch_size": 4}, "--batch-size 8"), ({"ema": False}, "--ema True")],
)
def test_resume_with_other_settings(npz: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = tiny(npz, tmp_path / "run", epochs=1)
    run(settings)
    before = settings.last.read_bytes()
    with pytest.raises(TrainingError, match=message):
        train(tiny(npz, tmp_path / "run", epochs=2, **changes), resume="auto")
    assert settings.last.read_bytes() == before


def test_resume_from_strange_files(npz: Path, tmp_path: Path) -> None:
    settings = tiny(npz, tmp_path / "run", epochs=1)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(settings, resume="auto")
    for name, content in {"weights.pth": {"head.weight": torch.zeros(2)}, "pickle.ckpt": {"x": pl.Trainer}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            train(settings, resume=str(tmp_path / name))


def test_fine_tuning_takes_the_weights(npz: Path, tmp_path: Path) -> None:
    start = run(tiny(npz, tmp_path / "start", epochs=1))
    tuned = run(tiny(npz, tmp_path / "tuned", epochs=1, lr=1e-9, min_lr=0, checkpoint=str(start.best)))
    for mine, theirs in zip(tuned.model.parameters(), start.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_average_is_validated_and_saved(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.nn.Module] = []
    averages: list[torch.nn.Module] = []
    original_step, original_setup = Classifier.forward, MovingAverage.setup

    def forward(self: Classifier, pixels: torch.Tensor) -> torch.Tensor:
        used.append(self.evaluated())
        return original_step(self, pixels)

    def setup(self: MovingAverage, *arguments: Any, **keywords: Any) -> None:
        original_setup(self, *arguments, **keywords)
        assert self.average is not None
        averages.append(self.average.module)

    monkeypatch.setattr(Classifier, "forward", forward)
    monkeypatch.setattr(MovingAverage, "setup", setup)
    result = run(tiny(npz, tmp_path / "run", epochs=2, ema_decay=0.5))
    assert used
    assert all(model is averages[0] for model in used)
    content = torch.load(result.last, weights_only=True)
    average, trained = content["state_dict"], content["trained_state_dict"]
    for name, value in averages[0].state_dict().items():
        assert torch.equal(average[f"model.{name}"], value)
    assert not torch.equal(average["model.head.weight"], trained["model.head.weight"])


def test_moving_average_by_hand(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ema <- d * ema + (1 - d) * weights after each step, with d = min(0.5, 1 - (1 + step) ** (-2/3))."""
    weights: list[torch.Tensor] = []
    original = MovingAverage.on_train_batch_end

    def keep(self: MovingAverage, trainer: Any, pl_module: Any, *rest: Any) -> None:
        weights.append(pl_module.model.head.weight.detach().clone())
        original(self, trainer, pl_module, *rest)

    monkeypatch.setattr(MovingAverage, "on_train_batch_end", keep)
    result = run(tiny(npz, tmp_path / "run", epochs=1, ema_decay=0.5))
    expected = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(result.model.head.weight.detach(), expected)


def test_divergence_stops_and_keeps_the_checkpoint(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(npz, tmp_path / "run", epochs=2)
    original = Classifier.on_train_batch_start

    def poison(self: Classifier, batch: Any, batch_idx: int) -> None:
        original(self, batch, batch_idx)
        if self.global_step == 4:
            batch.pixels.fill_(float("nan"))

    monkeypatch.setattr(Classifier, "on_train_batch_start", poison)
    with pytest.raises(TrainingError, match=r"loss is nan at step 4 \(epoch 1\)"):
        train(settings)
    saved = torch.load(settings.last, weights_only=True)
    assert saved["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def image_tree(root: Path, count: int) -> Path:
    for part, pictures in (("train", count), ("val", 10)):
        for name in "ab":
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(pictures):
                Image.new("RGB", (8, 8), (index % 255, ord(name), len(part))).save(folder / f"{index}.png")
    return root


def test_one_bad_picture_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_tree(tmp_path / "data", 110)
    (data / "train" / "a" / "3.png").write_bytes(b"")
    (data / "val" / "b" / "2.png").write_bytes(b"junk")
    result = run(tiny(data, tmp_path / "run", epochs=1, batch_size=32))
    assert len(result.unreadable) == 2
    assert result.val.count == 19
    printed = capsys.readouterr().err
    assert printed.count("a/3.png") == printed.count("b/2.png") == 1


def test_many_bad_pictures_stop_the_run(tmp_path: Path) -> None:
    data = image_tree(tmp_path / "data", 20)
    for index in range(3):
        (data / "train" / "a" / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"pictures cannot be read, more than 1%; the first: .*png"):
        train(tiny(data, tmp_path / "run", epochs=1, workers=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamwww"}, "--opt adamwww"),
        ({"scheduler": "cosinus"}, "--sched cosinus"),
        ({"accelerator": "abacus"}, "Lightning refuses"),
        ({"devices": "x"}, "Lightning refuses"),
    ],
)
def test_refused_settings(npz: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(tiny(npz, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"lr": -1.0}, "--lr is -1"),
        ({"precision": "8"}, "--precision is '8'"),
        ({"mixup": 0.2, "batch_size": 7}, "make it even"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tiny(Path("x"), Path("y"), **changes)


def test_sampler_divides_epochs_over_ranks(npz: Path) -> None:
    items = TrainingItems(open_dataset(npz).train, lambda pixels: torch.zeros(3, 1, 1), seed=0)
    one = EpochSampler(items, world_size=1, rank=0, seed=3)
    two = [EpochSampler(items, world_size=2, rank=rank, seed=3) for rank in (0, 1)]
    orders = []
    for epoch in (0, 1):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        order = list(one)
        assert order == [key for pair in zip(*two, strict=True) for key in pair]
        assert {index for _, index in order} == set(range(24))
        assert {key for key, _ in order} == {epoch}
        orders.append([index for _, index in order])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_with_the_next_batch(npz: Path, workers: int) -> None:
    def loader() -> ResumableLoader:
        items = TrainingItems(open_dataset(npz).train, lambda pixels: torch.rand(3, 1, 1), seed=0)
        return ResumableLoader(
            items, EpochSampler(items, world_size=1, rank=0, seed=3), batch_size=5, num_workers=workers, drop_last=True
        )

    first = loader()
    first.sampler.set_epoch(2)  # type: ignore[attr-defined]
    batches = iter(first)
    for _ in range(2):
        next(batches)
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 2}
    rest = [batch.pixels for batch in batches]
    assert first.state_dict() == {"epoch": 3, "batches": 0}
    second = loader()
    second.load_state_dict(state)
    assert all(torch.equal(a, b.pixels) for a, b in zip(rest, second, strict=True))


def test_module_without_trainer_serves_loaders(npz: Path) -> None:
    from edgemamba.runtime.preprocessing import Preprocessing
    from edgemamba.train.data.transforms import Augmentation

    module = PicturesModule(
        open_dataset(npz), Preprocessing(size=(16, 16)), Augmentation(), batch_size=7, workers=0, seed=0
    )
    (pixels, labels, unreadable) = next(iter(module.val_dataloader()))
    assert pixels.shape == (7, 3, 16, 16)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert unreadable == {}
    assert len(module.train_dataloader()) == 3


@pytest.mark.parametrize("content", [b"epoch,lr\n0,x\n", b"\xff\xfe", b"a\n1\n"])
def test_a_history_that_somebody_has_changed(npz: Path, tmp_path: Path, content: bytes) -> None:
    run(tiny(npz, tmp_path / "run", epochs=1, limit_train_batches=1))
    (tmp_path / "run" / "metrics.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=r"metrics\.csv .*; move it away"):
        run(tiny(npz, tmp_path / "run", epochs=2, limit_train_batches=1), resume="auto")


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "config.json", "data.json"])
def test_a_file_of_the_run_that_cannot_be_written(npz: Path, tmp_path: Path, name: str) -> None:
    """A folder in its place stands for whatever keeps a file from being written, which tests that run as root cannot lack."""
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(TrainingError, match=rf"{name}\S* cannot be written"):
        run(tiny(npz, tmp_path / "run", epochs=1, limit_train_batches=1))
