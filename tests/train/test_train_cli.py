"""The verb `edgemamba train` on every kind of data set, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from training_toys import TINY_OPTIONS, call, write_npz

pytestmark = pytest.mark.usefixtures("one_thread")


def write_tree(root: Path) -> Path:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (40, 30), (10 * index, 0, 0)).save(root / part / name / f"{index}.png")
    return root


def write_dicom_table(path: Path) -> Path:
    ct, mr = (get_testdata_file(name, download=False) for name in ("CT_small.dcm", "MR_small.dcm"))
    rows = [f"{ct},ct,{part}" for part in ("train",) * 3 + ("val",)] + [
        f"{mr},mr,{part}" for part in ("train",) * 3 + ("val",)
    ]
    path.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return path


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert call("train", "--data", write_tree(tmp_path / "data"), "--out", out, "--json", *TINY_OPTIONS) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["val"]["count"] == 8
    assert "medmamba_t: 0.01 M parameters, 32x32 uint8, 2 classes, 8 train, 8 val, 1 x CPU" in printed.err
    assert "edgemamba export" in printed.err
    assert Path(summary["best"]).is_file()


def test_npz_in_mixed_precision(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "x.npz", test=3)
    options = ["--precision", "bf16-mixed", "--cutmix", "0.5", "--no-ema", "--monitor", "auc"]
    options += ["--auto-augment", "rand-m5-n1", "--random-erasing", "0.5"]
    assert call("train", "--data", data, "--out", tmp_path / "run", *options, *TINY_OPTIONS) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["count"] == 3


def test_table_of_dicom_files(tmp_path: Path) -> None:
    """16-bit pictures make a checkpoint whose model takes 16-bit input."""
    out = tmp_path / "run"
    assert call("train", "--data", write_dicom_table(tmp_path / "t.csv"), "--out", out, *TINY_OPTIONS) == 0
    content = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["edgemamba"]["class_names"] == ["ct", "mr"]
    assert content["edgemamba"]["preprocessing"]["dtype"] == "uint16"


def test_resume_and_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_npz(tmp_path / "x.npz")
    run = ["train", "--data", data, "--out", tmp_path / "run", *TINY_OPTIONS]
    assert call(*run) == 0
    assert call(*run) == 2
    assert "already holds a run; go on with --resume auto" in capsys.readouterr().err
    assert call(*run, "--epochs", "2", "--resume", "auto") == 0
    assert call(*run, "--epochs", "3", "--resume", "auto", "--seed", "5") == 2
    assert "--seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "medmambo_t"], "medmamba_t"),
        (["--set", "depth=2,2"], "no option 'depth'; nearest: depths"),
        (["--set", "depths"], "KEY=VALUE is needed"),
        (["--image-size", "big"], "--image-size is 'big'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
        (["--monitor", "f1"], "--monitor is 'f1'"),
        (["--crop-scale", "2"], "--crop-scale is 2"),
        (["--hflip", "-1"], "--hflip is -1"),
        (["--image-size", "100000"], "models take up to"),
        (["--set", "num_classes=7"], "--set num_classes: the classes are those of the data"),
        (["--set", "img_size=64"], "--image-size and --set img_size say the same"),
        (["--lr", "inf"], "--lr is inf"),
        (["--betas", "0.9,1.5"], "--betas is 1.5"),
        (["--milestones", "-3"], "--milestones is -3"),
        (["--bogus"], "bogus"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    data = write_npz(tmp_path / "x.npz")
    assert call("train", "--data", data, "--out", tmp_path / "run", *TINY_OPTIONS, *options) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("edgemamba: error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opt", "adamx"], r"--opt adamx is not known; nearest: .*adam"),
        (["--sched", "cosin"], r"--sched cosin is not known; nearest: cosine"),
        (["--sched", "plateau"], r"--sched plateau is not known"),
    ],
)
def test_unknown_names_are_refused_before_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    missing = tmp_path / "there is no data here"
    assert call("train", "--data", missing, "--out", tmp_path / "run", *TINY_OPTIONS, *options) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_an_output_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    assert call("train", "--data", write_tree(tmp_path / "data"), "--out", out, *TINY_OPTIONS) == 2
    assert "cannot be written" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """A process of its own with its workers, all interrupted in the middle of an epoch as by a terminal, and resumed."""
    images = np.random.default_rng(0).integers(0, 255, (150, 32, 32), np.uint8)
    labels = np.arange(150) % 2
    data = tmp_path / "x.npz"
    np.savez(data, train_images=images, train_labels=labels, val_images=images[:8], val_labels=labels[:8])
    out = tmp_path / "run"
    options = [*TINY_OPTIONS[: TINY_OPTIONS.index("--limit-train-batches")], "--batch-size", "1", "--workers", "2"]
    command = [sys.executable, "-m", "edgemamba", "train", "--data", str(data), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("tensorboard/events*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.count("saving after this step") == 1
    assert "--resume auto goes on" in printed
    assert "Traceback" not in printed
    step = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 150
    resumed = subprocess.run([*command, "--resume", "auto"], stderr=subprocess.PIPE, text=True, env=environment)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"epoch +1/1", resumed.stderr)
    content = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 150
