"""Sinks, read back with the libraries that their users will use."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.bundled_dicom import dicom_file

from edgemamba.runtime import stream
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.predictions import TopClass
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks import CsvSink, ImageFolderSink, JsonlSink, VideoSink, open_sink
from edgemamba.runtime.sinks.window import has_windows
from edgemamba.runtime.sources import open_source
from edgemamba.runtime.sources.base import Source

cv2 = pytest.importorskip("cv2")
TOP = (TopClass(1, "grün", 0.75), TopClass(0, "red", 0.25))


class Described(Source):
    """A source that only says what it is."""

    def __init__(self, *, live: bool = False, fps: float | None = 25.0) -> None:
        super().__init__("described")
        self.live = live
        self.fps = fps

    def __iter__(self) -> Any:
        return iter(())


def result(
    index: int = 0, pixels: NDArray[Any] | None = None, timestamp: float | None = None, **metadata: Any
) -> Result:
    picture = np.full((48, 64, 3), 90, np.uint8) if pixels is None else pixels
    frame = Frame(picture, index, index / 25 if timestamp is None else timestamp, "clip.mp4", metadata)
    return Result(frame, TOP, np.zeros(2, np.float32), 0.0123)


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.pixels for frame in open_source(path)]  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------------------- jsonl


def test_jsonl_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with open_sink(path) as sink:
        sink.open(Described())
        sink.write(result(3, modality="CT"))
        on_disk = path.read_text(encoding="utf-8")  # before closing: a line is safe as soon as it is known
        sink.write(result(4))
    assert json.loads(on_disk) == {
        "index": 3,
        "timestamp": 0.12,
        "source": "clip.mp4",
        "top": [
            {"index": 1, "class": "grün", "probability": 0.75},
            {"index": 0, "class": "red", "probability": 0.25},
        ],
        "latency_ms": 12.3,
        "metadata": {"modality": "CT"},
    }
    assert [json.loads(line)["index"] for line in path.read_text(encoding="utf-8").splitlines()] == [3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_full_disk_is_one_clear_line() -> None:
    sink = JsonlSink("/dev/full")
    sink.open(Described())
    with pytest.raises(SinkError, match=r"/dev/full cannot be written after 0 lines: No space left"):
        sink.write(result())
    sink.close()


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.mp4", "o.avi"])
def test_without_a_result_nothing_is_made_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    """A source that turns out to be broken must not cost the results of an earlier run."""
    path = tmp_path / name
    with open_sink(path) as sink:
        sink.open(Described())
    assert list(tmp_path.iterdir()) == []
    with open_sink(path) as sink:
        sink.open(Described())
        sink.write(result(0))
        sink.write(result(1))
    before = path.read_bytes()
    with open_sink(path) as sink:
        sink.open(Described())
    assert path.read_bytes() == before
    with open_sink(path) as sink:
        sink.open(Described())
        sink.write(result(0))
    assert 0 < path.stat().st_size < len(before)


def test_lines_go_into_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, text=True)
    with open_sink(path) as sink:
        sink.open(Described())
        sink.write(result(7))
    assert json.loads(reader.communicate(timeout=30)[0])["index"] == 7


def test_no_patient_attribute_reaches_the_lines(tmp_path: Path, colour_engine: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    path = dicom_file("MR_small.dcm")
    dataset = pydicom.dcmread(path)
    out = tmp_path / "out.jsonl"
    list(stream(path, colour_engine, sinks=[JsonlSink(out)]))
    text = out.read_text()
    assert json.loads(text)["metadata"]["modality"] == "MR"
    keywords = [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "StudyDate",
        "InstitutionName",
        "StudyInstanceUID",
        "SOPInstanceUID",
    ]
    present = [str(dataset.get(keyword)) for keyword in keywords if dataset.get(keyword)]
    assert len(present) >= 4
    assert not [value for value in present if value in text]


# ------------------------------------------------------------------------------------------------------------------- video


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_video_can_be_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    with open_sink(path) as sink:
        sink.open(Described(fps=12.5))
        for i in range(10):
            sink.write(result(i, np.full((240, 320, 3), (20 * i, 0, 0), np.uint8)))
    source = open_source(path)
    frames = [frame.pixels for frame in source]
    assert (len(frames), source.fps) == (10, 12.5)
    assert frames[0].shape == (240, 320, 3)
    reds = [frame[200:, :, 0].mean() for frame in frames]
    assert np.abs(np.array(reds) - 20 * np.arange(10)).max() < 8
    assert frames[9][:40, :, 1:].max() > 120  # the letters


def test_odd_sides_and_changing_sizes(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sizes = [(241, 321), (482, 642), (100, 300), (240, 320), (16, 16), (1000, 50)]
    with VideoSink(path) as sink:
        sink.open(Described())
        for i, size in enumerate(sizes):
            sink.write(result(i, np.full((*size, 1), 40000, np.uint16)))
    assert [frame.shape for frame in frames_of(path)] == [(242, 322, 3)] * len(sizes)


def test_a_live_video_keeps_the_pace_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoSink(path) as sink:
        sink.open(Described(live=True, fps=10))
        for i, seconds in enumerate([0, 0.1, 0.5, 0.52, 0.54, 0.9]):  # a gap, then a burst
            sink.write(result(i, np.zeros((240, 320, 3), np.uint8), seconds))
    assert len(frames_of(path)) == 10


def test_a_video_that_was_deleted_meanwhile_is_one_line(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "out.avi")
    sink.open(Described())
    sink.write(result())
    (tmp_path / "out.avi").unlink()
    with pytest.raises(SinkError, match="or the file deleted"):
        sink.close()


def test_nothing_is_written_without_results(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "out.mp4") as sink:
        sink.open(Described())
    sink.close()


def test_an_encoder_that_cannot_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = VideoSink(tmp_path / "out.mp4")
    sink.codec = "xxxx"
    sink.open(Described())
    with pytest.raises(SinkError, match=r"out\.mp4: this OpenCV cannot encode xxxx at 240x240"):
        sink.write(result(pixels=np.zeros((240, 240, 3), np.uint8)))


KILLED = """
import os, sys, numpy as np
sys.path.insert(0, sys.argv[2])
from runtime.test_sinks import Described, result
from edgemamba.runtime.sinks import open_sink
sink = open_sink(sys.argv[1])
sink.open(Described())
noise = np.random.default_rng(0)
for i in range(60):
    sink.write(result(i, noise.integers(0, 255, (240, 320, 3), dtype=np.uint8)))
os._exit(9)
"""


@pytest.mark.parametrize("name", ["out.mkv", "out.jsonl", "folder"])
def test_what_survives_a_kill(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    folder = str(Path(__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), folder], capture_output=True, check=False, env={**os.environ}
    )
    assert process.returncode == 9, process.stderr
    if path.suffix == ".jsonl":
        assert len(path.read_text().splitlines()) == 60
    elif path.is_dir():
        assert len(list(path.glob("*.png"))) == 60
    else:
        assert len(frames_of(path)) > 50


# ------------------------------------------------------------------------------------------------------------------ images


def test_image_folder(tmp_path: Path) -> None:
    folder = tmp_path / "annotated"
    with ImageFolderSink(folder) as sink:
        sink.open(Described())
        sink.write(result(7, np.full((300, 400, 1), 30000, np.uint16)))
    (path,) = folder.iterdir()
    assert path.name == "000007_clip.png"
    assert cv2.imread(str(path)).shape == (300, 400, 3)


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    sink = ImageFolderSink(tmp_path / "annotated")
    sink.open(Described())
    evil = result()
    sink.write(Result(Frame(evil.frame.pixels, 1, 0, "../../etc/pass wd.png"), TOP, evil.logits, 0))
    assert [path.name for path in (tmp_path / "annotated").iterdir()] == ["000001_pass_wd.png"]


# ----------------------------------------------------------------------------------------------------------------- choosing


def test_the_path_chooses_the_sink(tmp_path: Path) -> None:
    assert isinstance(open_sink("a/b.jsonl"), JsonlSink)
    assert isinstance(open_sink("-"), JsonlSink)
    assert isinstance(open_sink("b.MP4"), VideoSink)
    assert isinstance(open_sink("folder"), ImageFolderSink)
    assert isinstance(open_sink("folder.x/"), ImageFolderSink)
    dotted = tmp_path / "run.1"
    dotted.mkdir()
    assert isinstance(open_sink(dotted), ImageFolderSink)
    assert isinstance(open_sink("b.csv"), CsvSink)
    assert isinstance(open_sink("file:///a%20b/c.jsonl"), JsonlSink)
    assert open_sink("file:///a%20b/c.jsonl").path == Path("/a b/c.jsonl")
    with pytest.raises(SinkError, match=r"out\.xls: results are written as \.jsonl"):
        open_sink("out.xls")
    with pytest.raises(SinkError, match=r"ftp:// is no sink; .* web://"):
        open_sink("ftp://host/out.mp4")


@pytest.mark.parametrize("name", ["out.jsonl", "out.mp4", "folder"])
def test_where_nothing_can_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError, match="file"):
        open_sink(tmp_path / "file" / name).open(Described())


# --------------------------------------------------------------------------------------------------------------------- CSV


def test_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with open_sink(path) as sink:
        sink.open(Described())
        sink.write(result(3))
        evil = Frame(np.zeros((8, 8, 3), np.uint8), 4, 0.5, '=HYPERLINK("x"),"y"')
        sink.write(Result(evil, TOP, np.zeros(2, np.float32), 0.001))
    rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
    assert rows == [
        ["index", "timestamp", "source", "class_1", "probability_1", "class_2", "probability_2", "latency_ms"],
        ["3", "0.120000", "clip.mp4", "grün", "0.750000", "red", "0.250000", "12.300"],
        ["4", "0.500000", '\'=HYPERLINK("x"),"y"', "grün", "0.750000", "red", "0.250000", "1.000"],
    ]
    assert path.read_bytes().count(b"\r\n") == 3  # RFC 4180


# ------------------------------------------------------------------------------------------------------------------ window


def test_a_window_where_opencv_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if has_windows(cv2):
        pytest.skip("this OpenCV has windows")
    with pytest.raises(SinkError, match=r"built without windows \(opencv-python-headless\).* --web PORT"):
        open_sink("window://").open(Described())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are named so on Linux")
def test_a_window_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.runtime.sinks.window.has_windows", lambda module: True)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match="there is no display"):
        open_sink("window://").open(Described())


def test_a_window_on_a_real_display(colour_engine: Any) -> None:
    if not has_windows(cv2):
        pytest.skip("this OpenCV has no windows (opencv-python-headless)")
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        pytest.skip("there is no display; run under xvfb-run")

    class Pictures(Described):
        def __iter__(self) -> Any:
            return (Frame(np.full((240, 320, 3), 90, np.uint8), i, i / 25, "x") for i in range(5))

    sink = open_sink("window://edgemamba%20test")
    assert len(list(stream(Pictures(), colour_engine, sinks=[sink]))) == 5
    assert "frames shown" in sink.describe()
