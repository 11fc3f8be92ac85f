"""Cross-validation: a run a fold, resumable fold by fold, and an aggregate that is the arithmetic of its folds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_toys import TINY_OPTIONS, call, tiny, write_npz

from edgemamba.runtime.errors import DataError, TrainingError
from edgemamba.train import cross_validation
from edgemamba.train.classifier import Classifier
from edgemamba.train.cross_validation import cross_validate, summarise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz", test=6)


def without_time_and_place(summary: dict[str, Any] | None) -> dict[str, Any]:
    assert summary is not None
    return {part: summary[part] for part in ("folds", "val", "test")}


def test_folds_are_run_and_summed_up(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    summary = cross_validate(tiny(npz, out, epochs=1), 3)
    assert summary is not None
    assert json.loads((out / "summary.json").read_text()) == summary
    folds = [json.loads((out / f"fold_{number}" / "summary.json").read_text()) for number in (1, 2, 3)]
    # Training and validation part are divided anew; the test part is the same of all.
    assert sum(fold["val"]["count"] for fold in folds) == 36
    assert [fold["test"]["count"] for fold in folds] == [6, 6, 6]
    for part in ("val", "test"):
        for name in ("loss", "top1", "auc"):
            values = [fold[part][name] for fold in folds]
            mean = sum(values) / 3
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
            figure = summary[part][name]
            assert figure["values"] == values
            assert figure["mean"] == pytest.approx(mean)
            assert figure["sd"] == pytest.approx(deviation, abs=1e-12)
    assert "count" not in summary["val"]
    printed = capsys.readouterr().err
    assert "fold 2 of 3" in printed
    assert "validation top1" in printed


def test_figures_that_a_fold_does_not_have(tmp_path: Path) -> None:
    """They are left out of mean and deviation, and shown as missing."""
    for number, auc in ((1, 0.5), (2, None), (3, 1.0)):
        folder = tmp_path / f"fold_{number}"
        folder.mkdir()
        figures = {"auc": auc, "top1": 0.25, "calibration": {"ece": 0.1 * number}, "class_names": ["a"], "count": 4}
        (folder / "summary.json").write_text(json.dumps({"val": figures, "test": None}))
    summary = summarise([tmp_path / f"fold_{number}" for number in (1, 2, 3)])
    assert summary["val"]["auc"] == {"mean": 0.75, "sd": pytest.approx(0.5 / math.sqrt(2)), "values": [0.5, None, 1.0]}
    assert summary["val"]["top1"]["sd"] == 0.0
    assert summary["val"]["calibration.ece"]["mean"] == pytest.approx(0.2)
    assert set(summary["val"]) == {"auc", "top1", "calibration.ece"}
    assert summary["test"] is None


def test_goes_on_where_it_was_interrupted(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second fold's second epoch: the first is left alone, the second resumed, and the sum is the same."""
    whole = cross_validate(tiny(npz, tmp_path / "whole", epochs=2), 2)
    run = tiny(npz, tmp_path / "parts", epochs=2)
    started: list[int] = []

    def interrupt(self: Classifier) -> None:
        assert self.settings.fold is not None
        started.append(self.settings.fold[0])
        if started.count(2) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", interrupt, raising=False)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            cross_validate(run, 2)
    assert not (run.folder / "summary.json").exists()
    with pytest.raises(TrainingError, match=r"fold_1 already holds a run; go on with --resume auto"):
        cross_validate(run, 2)
    first = (run.folder / "fold_1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    resumed = cross_validate(run, 2, resume="auto")
    assert (run.folder / "fold_1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == first
    assert without_time_and_place(resumed) == without_time_and_place(whole)

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a complete fold was run again")

    with monkeypatch.context() as patch:
        patch.setattr(cross_validation, "train", never)
        again = cross_validate(run, 2, resume="auto")
        assert again == resumed
        with pytest.raises(TrainingError, match=r"--lr 0\.003 and this run asks for 0\.1"):
            cross_validate(run.model_copy(update={"lr": 0.1}), 2, resume="auto")
        with pytest.raises(AssertionError):
            cross_validate(run.model_copy(update={"epochs": 3}), 2, resume="auto")


@pytest.mark.parametrize(
    ("changes", "folds", "resume", "message"),
    [
        ({}, 1, None, "--folds is 1; 2 or more"),
        ({"fold": (1, 3)}, 3, None, "give one of the two"),
        ({}, 3, "some.ckpt", "with --folds it is auto"),
        ({"val_fraction": 0.2}, 3, None, "--val-fraction"),
        ({}, 99, None, "cannot be divided into 99 folds"),
    ],
)
def test_bad_usage(
    npz: Path, tmp_path: Path, changes: dict[str, Any], folds: int, resume: str | None, message: str
) -> None:
    with pytest.raises((TrainingError, DataError), match=message):
        cross_validate(tiny(npz, tmp_path / "run", **changes), folds, resume=resume)


def test_the_verb(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--folds runs all; --fold one of them, into a folder of its own, with the same pictures."""
    options = ["train", "--data", str(npz), *TINY_OPTIONS]
    assert call(*options, "--out", str(tmp_path / "all"), "--folds", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["folds"] == 2
    assert call(*options, "--out", str(tmp_path / "one"), "--fold", "2/2", "--json") == 0
    one = json.loads(capsys.readouterr().out)
    assert one["val"] == json.loads((tmp_path / "all" / "fold_2" / "summary.json").read_text())["val"]


def test_patients_stay_together(tmp_path: Path) -> None:
    """In real runs on a table of patients: no patient is in two validation parts."""
    from PIL import Image

    rows = ["path,label,patient"]
    for patient in range(6):
        for index in range(2):
            path = tmp_path / f"{patient}_{index}.png"
            shade = np.full((32, 32, 3), 20 * patient + index, np.uint8)
            Image.fromarray(shade).save(path)
            rows.append(f"{path},{'ab'[patient % 2]},p{patient}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    summary = cross_validate(tiny(table, tmp_path / "run", epochs=1, batch_size=4), 3)
    assert summary is not None
    for number in (1, 2, 3):
        fold = json.loads((tmp_path / "run" / f"fold_{number}" / "summary.json").read_text())
        assert fold["val"]["count"] == 4
        assert np.array(fold["val"]["confusion"]).sum(axis=1).tolist() == [2, 2]


@pytest.mark.parametrize("content", ['{"val": {"to', "[]"])
def test_a_damaged_summary_of_a_fold(npz: Path, tmp_path: Path, content: str) -> None:
    settings = tiny(npz, tmp_path / "run", epochs=1, limit_train_batches=1)
    cross_validate(settings, 2)
    (tmp_path / "run" / "fold_2" / "summary.json").write_text(content)
    with pytest.raises(TrainingError, match=r"fold_2/summary\.json is missing or damaged"):
        cross_validate(settings, 2, resume="auto")
