"""Data sets that are wrong: one line that names the thing, exit code 2; and single bad pictures, which a run survives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_toys import write_tree
from PIL import Image
from training_toys import TINY_OPTIONS, call, tiny, write_npz

from edgemamba.runtime.errors import DataError
from edgemamba.train import training
from edgemamba.train.training import train


def table(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    for index in range(8):
        Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def rows(*changed: str) -> str:
    """A sound table, but for the last rows."""
    sound = [f"{index}.png,{index % 2},{'train' if index < 4 else 'val'}" for index in range(8 - len(changed))]
    return "\n".join(["path,label,split", *sound, *changed]) + "\n"


def pickled(folder: Path) -> Path:
    path = write_npz(folder / "x.npz")
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"train_labels": np.array([print] * 24, object)})
    return path


def one_label_too_high(folder: Path) -> Path:
    return write_npz(folder / "x.npz", class_names=np.array(["a", "b"]))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty class folder": (
        lambda folder: write_tree(folder, {"train/a": 2, "train/b": 0, "val/a": 1, "val/b": 1}),
        "train/b has no picture in it; remove the folder, or put pictures there",
    ),
    "empty class folder of val": (
        lambda folder: write_tree(folder, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 0}),
        "val/b has no picture in it",
    ),
    "empty folder": (lambda folder: folder, "there is no folder of a class"),
    "one class": (lambda folder: write_tree(folder, {"a": 5}), "has only one class (a)"),
    "no such file": (lambda folder: folder / "gone.csv", "gone.csv does not exist"),
    "label out of range": (one_label_too_high, "label 2 and the classes are 0 to 1"),
    "label missing in the middle": (
        lambda folder: table(folder, rows("6.png,3,val", "7.png,4,val")),
        "labels go up to 4 and there is none of label 2",
    ),
    "no label column": (
        lambda folder: table(folder, "path,class\n0.png,1\n"),
        "has no column 'label'; it has: path, class",
    ),
    "empty label": (lambda folder: table(folder, rows("7.png,,val")), "line 9: label is empty"),
    "not UTF-8": (lambda folder: table(folder, rows().encode("utf-16")), "cannot be read as CSV (UTF-8)"),
    "latin letters": (lambda folder: table(folder, rows("7.png,m\xfcde,val").encode("latin-1")), "CSV (UTF-8)"),
    "empty table": (lambda folder: table(folder, ""), "has no column 'path'; it has: none"),
    "NUL bytes": (lambda folder: table(folder, bytes(4096)), "table.csv"),
    "one picture, two labels": (
        lambda folder: table(folder, rows("7.png,0,val", "./7.png,1,val")),
        "line 8 and line 9 name the same picture with different labels (0 and 1)",
    ),
    "no parquet": (lambda folder: table(folder, rows(), "table.parquet"), "cannot be read as Parquet"),
    "pickled objects": (pickled, "cannot be read as .npz: Object arrays cannot be loaded when allow_pickle=False"),
    "empty npz": (lambda folder: table(folder, "", "x.npz"), "x.npz cannot be read as .npz"),
    "empty tar": (lambda folder: table(folder, "", "x.tar"), "x.tar is damaged, or no tar"),
    "unknown kind": (lambda folder: table(folder, "", "x.txt"), "x.txt is no data set that is known"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("look_only", [True, False])
def test_bad_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, look_only: bool) -> None:
    if case == "no parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    make, message = BAD[case]
    (tmp_path / "data").mkdir()
    data = make(tmp_path / "data")
    options = ["--inspect-data"] if look_only else ["--out", str(tmp_path / "run"), *TINY_OPTIONS]
    status = call("train", "--data", str(data), *options)
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("edgemamba: error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def noisy_tree(root: Path, train: int, val: int) -> Path:
    """A tree of two classes without two equal pictures."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{index}.png")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_within_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    """An empty file, a cut one and one that is no picture: skipped, counted and named once, and the run goes on."""
    data = noisy_tree(tmp_path / "data", 190, 10)
    (data / "train" / "a" / "7.png").write_bytes(b"")
    whole = (data / "train" / "b" / "8.png").read_bytes()
    (data / "train" / "b" / "8.png").write_bytes(whole[: len(whole) // 2])
    (data / "val" / "a" / "9.png").write_bytes(b"junk")
    bad = {str(data / name) for name in ("train/a/7.png", "train/b/8.png", "val/a/9.png")}
    result = train(tiny(data, tmp_path / "run", epochs=2, batch_size=128, workers=workers, balanced=True))
    assert result is not None
    assert set(result.unreadable) == bad
    assert result.val.count == 19
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["unreadable"]) == bad
    assert set(json.loads((tmp_path / "run" / "data.json").read_text())["unreadable"]) == {
        str(Path(name).relative_to(data)) for name in bad
    }
    printed = capsys.readouterr().err
    assert "3 pictures cannot be read" in printed
    for name in bad:
        # Once, not in every epoch.
        assert printed.count(name) == 1
    assert call("train", "--data", data, "--inspect-data") == 0
    printed = capsys.readouterr().err
    for name in bad:
        assert f"unreadable: {name}" in printed


@pytest.mark.parametrize(
    ("workers", "every", "message"),
    [
        (0, 2, r"of 64 pictures cannot be read, more than 1%; the first: .*train/b/\d+.png"),
        (2, 1, r"^16 pictures in a row cannot be read; the last: .*train/b/\d+.png cannot be read: No such file"),
    ],
)
def test_pictures_that_vanish_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, every: int, message: str
) -> None:
    """A disk that fails after the start: the data sheet was clean, the run stops with one line, and its checkpoint is intact."""
    data = noisy_tree(tmp_path / "data", 24, 8)
    settings = tiny(data, tmp_path / "run", epochs=1, workers=workers)
    train(settings)
    before = settings.last.read_bytes()

    def clean(*arguments: object, **keywords: object) -> object:
        sheet = original(*arguments, **keywords)
        for path in sorted((data / "train" / "b").iterdir())[::every]:
            path.unlink()
        return sheet

    original = training.check_data
    monkeypatch.setattr(training, "check_data", clean)
    with pytest.raises(DataError, match=message):
        train(tiny(data, tmp_path / "run", epochs=3, workers=workers), resume="auto")
    assert settings.last.read_bytes() == before


def test_many_bad_pictures_stop_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = noisy_tree(tmp_path / "data", 20, 10)
    for index in range(3):
        (data / "train" / "a" / f"{index}.png").write_bytes(b"")
    assert call("train", "--data", str(data), "--out", str(tmp_path / "run"), *TINY_OPTIONS) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "3 of 60 pictures cannot be read, more than 1%; the first: " in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_nothing_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tree(tmp_path / "data", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    for options in (["--inspect-data"], ["--out", str(tmp_path / "run"), *TINY_OPTIONS]):
        assert call("train", "--data", str(data), *options) == 2
        *_, line = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("edgemamba: error: ")
        assert "is empty (0 bytes)" in line


def test_no_picture_of_validation_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are few enough of the whole to pass the bar of 1 %, and leave nothing to choose a checkpoint by."""
    data = noisy_tree(tmp_path / "data", 120, 1)
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    assert call("train", "--data", data, "--out", tmp_path / "run", *TINY_OPTIONS) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "none of the pictures to validate on can be read" in line
