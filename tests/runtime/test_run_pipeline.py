"""`edgemamba run` beyond files in and files out: strategies, the page, signals, what stays private."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.bundled_dicom import dicom_file
from runtime.waiting import wait_for, wait_for_lines

from edgemamba.runtime import open_source

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("pydicom")


HANGING_CAMERA = """
import sys, time
import cv2
class Camera:
    def __init__(self, device, *arguments): pass
    def isOpened(self): return True
    def get(self, property): return 30.0
    def set(self, property, value): return True
    def read(self): time.sleep(3600)
    def release(self): pass
cv2.VideoCapture = Camera
from edgemamba.runtime import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--strategy", "DROP_OLDEST"), "clip.mp4 is no live source: its frames are never dropped"),
        (("--strategy", "LAZY"), "strategy 'LAZY' is unknown; choose one of: WAIT, DROP_OLDEST, DROP_LATEST"),
        (("--web", "localhost"), "is no address to listen on"),
        (("--web", "192.0.2.1:80"), "cannot be listened on"),
        (("--metrics", "x:y"), "is no address to listen on"),
        (("--web", "0", "--web-token", "short"), "8 or more are needed"),
        (("--out", "gopher://x"), "gopher:// is no sink"),
        (("--stop-on-stall", "--stall-seconds", "0"), "needs a time"),
        (("--stall-seconds", "-1"), "stall-seconds"),
    ],
)
def test_bad_usage_of_the_pipeline(arguments: tuple[str, ...], reason: str, run: Any, clip: Path) -> None:
    pytest.importorskip("fastapi")
    code, out, err = run("--source", clip, *arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_waiting_may_be_asked_for(run: Any, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    code, _, err = run("--source", clip, "--strategy", "wait", "--batch", 3, "--batch-wait-ms", 500, "--out", out)
    assert code == 0
    assert "40 frames in" in err
    assert "capture to result" in err
    assert len(out.read_text().splitlines()) == 41


def test_the_page_of_a_file(run: Any, clip: Path) -> None:
    pytest.importorskip("fastapi")
    code, out, err = run("--source", clip, "--web", "0", "--json")
    assert code == 0
    assert "edgemamba: live page at http://127.0.0.1:" in err
    assert json.loads(out)["outputs"][0].startswith("live page at http://127.0.0.1:")


def test_uids_reach_neither_lines_nor_messages(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "in"
    folder.mkdir()
    uid = "1.2.826.0.1.3680043.8.498.7"
    shutil.copy(dicom_file("CT_small.dcm"), folder / f"{uid}.1.dcm")
    (folder / f"{uid}.2.dcm").write_bytes(dicom_file("MR_small.dcm").read_bytes()[:-900])
    code, out, err = run("--source", folder)
    assert code == 0
    assert uid not in out + err
    assert "uid-" in out
    assert "skipped: " in err
    code, out, err = run("--source", folder, "--json")
    assert uid not in out + err
    code, out, err = run("--source", folder / f"{uid}.2.dcm")
    assert code == 2
    assert uid not in out + err
    code, out, _ = run("--source", folder, "--include-phi")
    assert uid in out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_file_finishes_the_outputs(how: signal.Signals, colour_bundle: Path, tmp_path: Path) -> None:
    """A signal in the middle of a long file: what was written is whole, and in order."""
    for index in range(40):
        cv2.imwrite(str(tmp_path / f"{index:03}.png"), np.full((32, 32, 3), 90, np.uint8))
    (tmp_path / "many").mkdir()
    for index in range(4000):
        (tmp_path / "many" / f"{index:05}.png").symlink_to(tmp_path / f"{index % 40:03}.png")
    video, lines = tmp_path / "o.mp4", tmp_path / "o.csv"
    arguments = [
        "run",
        str(colour_bundle),
        "--source",
        str(tmp_path / "many"),
        "--out",
        str(video),
        "--out",
        str(lines),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemamba", *arguments, "--backend", "ort-function"], stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, lines)
    process.send_signal(how)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130, err
    indices = [int(line.split(",")[0]) for line in lines.read_text().splitlines()[1:]]
    assert indices == list(range(len(indices)))
    assert 10 <= len(indices) < 4000
    assert f"{len(indices)} frames in" in err
    assert len(list(open_source(video))) == len(indices)


def test_a_mock_camera_that_gives_nothing_ends_when_asked(colour_bundle: Path, tmp_path: Path) -> None:
    arguments = ["run", str(colour_bundle), "--source", "0", "--stall-seconds", "0.3", "--stop-on-stall"]
    done = subprocess.run(
        [sys.executable, "-c", HANGING_CAMERA, *arguments, "--backend", "ort-function"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "edgemamba: error: camera 0: no frame for 0.3 s: the source has stalled" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_damaged_files_does_not_fill_the_log(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "000.png"), np.zeros((32, 32, 3), np.uint8))
    for index in range(1, 101):
        (folder / f"{index:03}.png").write_bytes(b"no picture")
    code, _, err = run("--source", folder, "--out", tmp_path / "o.jsonl")
    assert code == 0
    assert err.count("edgemamba: skipped: ") == 30
    assert "edgemamba: 70 more lines were left out (30 a minute are shown)" in err
    assert "100 skipped, 0 dropped" in err


@pytest.mark.parametrize(
    ("option", "missing"), [("--web", "fastapi"), ("--web", "uvicorn"), ("--metrics", "prometheus_client")]
)
def test_a_missing_extra_is_one_line(
    option: str, missing: str, run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.core", None)
    code, out, err = run("--source", clip, option, "0")
    assert (code, out) == (2, "")
    assert f"{missing} is needed for" in err
    assert "is not installed: pip install" in err
    assert err.count("\n") == 1


def test_dicom_objects_of_a_dicom_file(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    out = tmp_path / "objects"
    code, _, err = run("--source", dicom_file("CT_small.dcm"), "--out", f"dicom://{out}")
    assert code == 0, err
    source = pydicom.dcmread(dicom_file("CT_small.dcm"))
    objects = [pydicom.dcmread(path) for path in sorted(out.iterdir())]
    assert sorted(item.SOPClassUID.name for item in objects) == [
        "Comprehensive SR Storage",
        "Secondary Capture Image Storage",
    ]
    assert not [item for item in objects if str(source.PatientName) in str(item)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_second_interrupt_ends_at_once_though_an_output_hangs(colour_bundle: Path, tmp_path: Path) -> None:
    """Nobody reads the pipe: the first Ctrl-C waits for it, for outputs are finished; the second does not."""
    picture = tmp_path / "0.png"
    cv2.imwrite(str(picture), np.full((32, 32, 3), 90, np.uint8))
    (tmp_path / "many").mkdir()
    for index in range(3000):
        (tmp_path / "many" / f"{index:05}.png").symlink_to(picture)
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    arguments = ["run", str(colour_bundle), "--source", str(tmp_path / "many"), "--out", str(pipe)]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemamba", *arguments, "--backend", "ort-function"], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: process.poll() is not None or select.select([reader], [], [], 0)[0], 60)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(2)  # until the pipe is full
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        os.close(reader)
    assert process.returncode == 130
    assert "Traceback" not in err
