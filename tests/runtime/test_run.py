"""`edgemamba run` as its users run it: real files in, real files out, one clear line for bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.bundled_dicom import dicom_file
from runtime.waiting import wait_for_lines
from runtime.without_packages import without_packages

from edgemamba.runtime import open_source

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("pydicom")


def test_video_to_video_and_lines(run: Any, clip: Path, tmp_path: Path) -> None:
    lines_path, video_path, folder = tmp_path / "o.jsonl", tmp_path / "o.mp4", tmp_path / "pictures"
    code, out, err = run(
        "--source", clip, "--out", lines_path, "--out", video_path, "--out", folder, "--batch", 4, "--top-k", 2
    )
    assert (code, out) == (0, "")
    assert "40 frames in" in err
    assert "frames/s with ort-function" in err
    assert "0 skipped, 0 dropped" in err
    for name in ("source", "preprocess", "engine", "sink", "p95", str(video_path)):
        assert name in err
    lines = [json.loads(line) for line in lines_path.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(40))
    assert [line["top"][0]["class"] for line in lines] == ["red"] * 20 + ["green"] * 20
    assert all(line["top"][0]["probability"] > 0.9 and len(line["top"]) == 2 for line in lines)
    assert len(list(open_source(video_path))) == 40
    assert len(list(folder.glob("*.png"))) == 40


def test_report_as_json(run: Any, clip: Path) -> None:
    code, out, err = run("--source", clip, "--json", "--max-frames", 7)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["frames"], report["skipped"], report["dropped"]) == (7, 0, 0)
    assert report["engine"]["backend"] == "ort-function"
    assert report["stages_ms"]["engine"]["count"] == 7
    assert 0 < report["overhead_share"] < 1
    assert report["frames_per_second"] == pytest.approx(7 / report["seconds"], rel=1e-2)


def test_one_line_a_frame_without_outputs(run: Any, clip: Path) -> None:
    code, out, _ = run("--source", clip, "--max-frames", 3, "--top-k", 1)
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["0", "1", "2"]
    assert "red 9" in out


def test_lines_on_stdout(run: Any, clip: Path) -> None:
    code, out, _ = run("--source", clip, "--max-frames", 3, "--out", "-")
    assert code == 0
    assert [json.loads(line)["index"] for line in out.splitlines()] == [0, 1, 2]


def test_dicom_cine_to_video(run: Any, tmp_path: Path) -> None:
    code, _, err = run("--source", dicom_file("examples_ybr_color.dcm"), "--out", tmp_path / "cine.mp4")
    assert code == 0, err
    source = open_source(tmp_path / "cine.mp4")
    assert len(list(source)) == 30
    assert source.fps == pytest.approx(30, rel=1e-3)


def test_window_of_the_user(run: Any, tmp_path: Path) -> None:
    """All of the slice is above the window: white, where the file's own range shows it dark."""
    path = tmp_path / "o.jsonl"
    arguments = ("--source", dicom_file("CT_small.dcm"), "--out", path)
    assert run(*arguments)[0] == 0
    assert json.loads(path.read_text())["metadata"]["voi"] == "least to greatest value of the frame"
    assert run(*arguments, "--window-center", -2000, "--window-width", 10)[0] == 0
    line = json.loads(path.read_text())
    assert line["metadata"]["voi"] == "window -2000/10 LINEAR"
    assert {round(item["probability"], 3) for item in line["top"]} == {0.333}
    sigmoid = ("--window-center", 40, "--window-width", 400, "--window-function", "sigmoid")
    assert run(*arguments, *sigmoid)[0] == 0
    assert json.loads(path.read_text())["metadata"]["voi"] == "window 40/400 SIGMOID"


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def bad(tmp_path: Path, clip: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        path = tmp_path / kind
        if kind == "cut.mp4":
            path.write_bytes(clip.read_bytes()[:-500])
        elif kind == "cut.dcm":
            path.write_bytes(dicom_file("MR_small.dcm").read_bytes()[:-900])
        elif kind == "no_pixels.dcm":
            shutil.copy(dicom_file("reportsi.dcm"), path)
        elif kind == "unsupported.dcm":
            shutil.copy(dicom_file("JPGExtended.dcm"), path)
        elif kind == "empty.png":
            path.write_bytes(b"")
        elif kind == "cut.png":
            cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
            path.write_bytes(path.read_bytes()[:-300])
        elif kind == "nothing_readable":
            path.mkdir()
            (path / "a.png").write_bytes(b"")
            (path / "b.jpg").write_bytes(b"no picture")
            (path / "notes.txt").write_text("words")
        elif kind == "empty_folder":
            path.mkdir()
        return path

    return make


BAD = {
    "cut.mp4": "cannot be opened as a video",
    "cut.dcm": "pixel data (7FE0,0010) are cut short",
    "no_pixels.dcm": "has no pixel data (7FE0,0010)",
    "unsupported.dcm": "JPEG Extended (Process 2 and 4)",
    "empty.png": "is empty (0 bytes)",
    "cut.png": "is cut short",
    "nothing_readable": "none of its 2 pictures can be read",
    "empty_folder": "holds no image or DICOM file",
    "missing.mp4": "does not exist",
}


@pytest.mark.parametrize(("kind", "reason"), BAD.items())
def test_bad_sources_are_one_clear_line(kind: str, reason: str, run: Any, bad: Callable[[str], Path]) -> None:
    path = bad(kind)
    code, out, err = run("--source", path)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("edgemamba: error: ")]
    assert len(errors) == 1
    assert reason in errors[0]
    assert str(path) in errors[0]
    assert "Traceback" not in err


def test_bad_files_in_a_folder_are_skipped_said_and_counted(
    run: Any, bad: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.full((32, 32, 3), (0, 255, 0), np.uint8))
    for kind in ("cut.dcm", "no_pixels.dcm", "unsupported.dcm", "empty.png", "cut.png"):
        shutil.move(bad(kind), folder)
    shutil.copy(dicom_file("CT_small.dcm"), folder)
    out_path = tmp_path / "o.jsonl"
    code, _, err = run("--source", folder, "--out", out_path)
    assert code == 0
    assert "2 frames in" in err
    assert "5 skipped, 0 dropped" in err
    assert err.count("edgemamba: skipped: ") == 5
    assert "Traceback" not in err
    assert [json.loads(line)["source"] for line in out_path.read_text().splitlines()] == ["1.png", "CT_small.dcm"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--out", "clip.mp4"), "is the source itself"),
        (("--out", "o.xls"), "results are written as .jsonl"),
        (("--out", "o.mp4", "--out", "./o.mp4"), "given twice"),
        (("--json", "--out", "-"), "both write to stdout"),
        (("--window-center", "3"), "belong together"),
        (("--window-center", "3", "--window-width", "0"), "not defined"),
        (("--voi", "nice"), "nice is unknown"),
        (("--window-center", "3", "--window-width", "9", "--window-function", "cubic"), "cubic is unknown"),
        (("--window-function", "sigmoid"), "belongs to --window-center"),
        (("--batch", "0"), "batch"),
        (("--backend", "abacus"), "there is no backend 'abacus'"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], reason: str, run: Any, clip: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(clip.parent)
    before = clip.read_bytes()
    code, _, err = run("--source", "clip.mp4", *arguments)
    assert code == 2
    assert reason in err
    assert "Traceback" not in err
    assert clip.read_bytes() == before
    assert not (clip.parent / "o.mp4").exists()


def test_pictures_do_not_go_into_the_folder_that_is_read(run: Any, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((32, 32, 3), np.uint8))
    code, _, err = run("--source", tmp_path, "--out", tmp_path)
    assert code == 2
    assert "is the folder that is being read" in err
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_into_a_folder_that_is_watched(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    for out in (folder / "annotated", folder / "deep" / "results.jsonl"):
        code, _, error = run("--source", f"watch://{folder}", "--out", out)
        assert code == 2
        assert "is being watched" in error


def test_a_changed_bundle_is_refused(run: Any, colour_bundle: Path, clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(colour_bundle, tmp_path / "copy"))
    content = bytearray((copy / "model.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "model.onnx").write_bytes(content)
    code, _, err = run("--source", clip, "--out", tmp_path / "o.jsonl", bundle=copy)
    assert code == 2
    assert "was changed since the bundle was written" in err


# ---------------------------------------------------------------------------------------------- interruption, light installs

MOCK_CAMERA = """
import itertools, sys, time
import cv2, numpy as np
class Camera:
    def __init__(self, device, backend): self.device = device
    def isOpened(self): return True
    def get(self, property): return 100.0
    def read(self): time.sleep(0.01); return True, np.full((240, 320, 3), 200, np.uint8)
    def release(self): pass
cv2.VideoCapture = Camera
from edgemamba.runtime import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_mock_camera_finishes_the_outputs(
    how: signal.Signals, colour_bundle: Path, tmp_path: Path
) -> None:
    video, lines = tmp_path / "o.mp4", tmp_path / "o.jsonl"
    arguments = ["run", str(colour_bundle), "--source", "0", "--out", str(video), "--out", str(lines)]
    process = subprocess.Popen(
        [sys.executable, "-c", MOCK_CAMERA, *arguments, "--backend", "ort-function"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_lines(process, lines)
    process.send_signal(how)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "interrupted" in err
    assert "frames/s" in err
    assert "Traceback" not in err
    assert len([json.loads(line) for line in lines.read_text().splitlines()]) > 10
    assert len(list(open_source(video))) > 10


ALL_OF_RUNTIME = f"""
{without_packages("torch", "torchvision", "timm", "lightning", "onnx", "onnxscript", "onnx_ir")}
import importlib, pkgutil
import edgemamba.runtime
for module in pkgutil.walk_packages(edgemamba.runtime.__path__, "edgemamba.runtime."):
    if not module.name.endswith(".libedgemamba"):  # the native library, which is no Python module
        importlib.import_module(module.name)
for name in edgemamba.runtime.__all__:
    getattr(edgemamba.runtime, name)
from edgemamba.runtime import cli
cli.main(sys.argv[1:])
"""


def test_all_of_the_runtime_works_without_torch_and_onnx(colour_bundle: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.mp4"
    arguments = ["run", str(colour_bundle), "--source", str(clip), "--out", str(out)]
    process = subprocess.run(
        [sys.executable, "-c", ALL_OF_RUNTIME, *arguments, "--backend", "ort-function", "--max-frames", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert len(list(open_source(out))) == 5
