"""The demo: its data kept apart, its DICOM file valid, and the whole of it end to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from edgemamba.export.commands.demo import next_free
from edgemamba.export.demo.held_out import REPEAT, write_dicom, write_video
from edgemamba.export.demo.planes import (
    _BLOCK,
    _GAP,
    PLANES,
    SIDE,
    Pictures,
    divide,
    load_volume,
    make_pictures,
    save_npz,
    to_uint16,
)
from edgemamba.runtime import open_source
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.cli import main
from edgemamba.train.data import Part, open_dataset


@pytest.fixture(scope="module")
def pictures() -> dict[Part, Pictures]:
    return make_pictures({"train": 12, "val": 4, "test": None}, seed=3)


def test_blocks_leave_a_gap() -> None:
    parts = divide(list(range(100, 180)))
    assert set(parts["train"]) | set(parts["val"]) | set(parts["test"]) < set(range(100, 180))
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        distances = [abs(a - b) for a in parts[one] for b in parts[other]]  # type: ignore[index]
        assert min(distances) > _GAP
    assert all(len(indices) >= 2 * _BLOCK for indices in parts.values() if indices is not parts["val"])


def test_parts_share_no_slice_and_no_mirrored_slice(pictures: dict[Part, Pictures]) -> None:
    """The template is symmetric about x = 0: a sagittal slice and its mirror image are one and the same."""
    volume, _ = load_volume()
    assert np.array_equal(volume, volume[::-1])
    seen = {
        part: {(s.plane, -abs(s.position) if s.plane == "sagittal" else s.position) for s in found.slices}
        for part, found in pictures.items()
    }
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        for plane in PLANES:
            a = [position for name, position in seen[one] if name == plane]  # type: ignore[index]
            b = [position for name, position in seen[other] if name == plane]  # type: ignore[index]
            assert min(abs(x - y) for x in a for y in b) > _GAP


def test_test_part_is_balanced_and_each_slice_appears_once(pictures: dict[Part, Pictures]) -> None:
    test = pictures["test"]
    assert len(set(test.slices)) == len(test.slices) == 36
    assert np.bincount(test.labels).tolist() == [12, 12, 12]


def test_pictures_depend_on_the_seed_alone(pictures: dict[Part, Pictures]) -> None:
    again = make_pictures({"train": 12, "val": 4, "test": None}, seed=3)
    other = make_pictures({"train": 12, "val": 4, "test": None}, seed=4)
    assert np.array_equal(again["train"].images, pictures["train"].images)
    assert not np.array_equal(other["test"].images, pictures["test"].images)


def test_outlines_give_nothing_away(pictures: dict[Part, Pictures]) -> None:
    """All pictures are square and filled to the edge or not regardless of the plane."""
    for found in pictures.values():
        assert found.images.shape[1:] == (SIDE, SIDE)
        assert found.images.dtype == np.uint16
        assert 255 < found.images.max() <= 4095


def test_dicom_file_gives_the_training_pixels(pictures: dict[Part, Pictures], tmp_path: Path) -> None:
    test = pictures["test"]
    write_dicom(tmp_path / "x.dcm", test)
    frames = [frame.pixels for frame in open_source(tmp_path / "x.dcm")]
    assert np.array_equal(np.stack(frames)[..., 0], to_uint16(test.images))
    data = dcmread(tmp_path / "x.dcm")
    assert data.PatientName == "DEMO^SYNTHETIC"
    assert data.NumberOfFrames == 36
    assert data.BitsStored == 12
    assert [frame.timestamp for frame in open_source(tmp_path / "x.dcm")][:3] == pytest.approx([0, 0.2, 0.4])
    save_npz(tmp_path / "x.npz", pictures)
    npz = open_dataset(tmp_path / "x.npz")
    assert npz.class_names == PLANES
    assert npz.test is not None
    assert np.array_equal(npz.test.read(5), frames[5])


def test_video(pictures: dict[Part, Pictures], tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", pictures["test"])
    frames = [frame.pixels for frame in open_source(tmp_path / "x.mp4")]
    assert len(frames) == 36 * REPEAT
    wanted = pictures["test"].images[7] / 4095 * 255
    assert np.abs(frames[7 * REPEAT][..., 0] - wanted).mean() < 8  # MPEG-4 is lossy


def test_folders_are_never_reused(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for expected in ("demo", "demo-2", "demo-3"):
        found = next_free(folder)
        assert found.name == expected
        found.mkdir()


def test_without_nilearn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path / "demo")])
    assert stop.value.code == 2
    assert 'pip install "edgemamba[demo]"' in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "edgemamba", "demo", "--out", str(tmp_path / "demo"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout)
    out = tmp_path / "demo-2"
    assert summary["folder"] == str(out)
    assert not list((tmp_path / "demo").iterdir())
    assert summary["n"] == 36
    assert summary["interval"][0] > 1 / 3
    assert summary["parity"] is True
    assert summary["disagreements"] == 0
    # The engine reads the very pixels that PyTorch was tested on.
    assert summary["streamed"]["held_out.dcm"] == pytest.approx(summary["accuracy"])
    assert "exists: this run goes to" in process.stderr
    assert "average of 152 brains" in re.sub(r"\s+", " ", process.stderr)

    assert Bundle.load(out / "bundle").manifest.preprocessing.dtype == "uint16"
    assert (out / "bundle" / "parity.html").is_file()
    lines = (out / "dcm_result.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines if "top" in json.loads(line)]
    assert len(results) == 36
    truth = [line.split(",")[1] for line in (out / "held_out.csv").read_text().splitlines()[1:]]
    right = sum(result["top"][0]["class"] == plane for result, plane in zip(results, truth, strict=True))
    assert right / 36 == pytest.approx(summary["accuracy"])
    video = cv2.VideoCapture(str(out / "dcm_result.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 36
    assert Image.open(out / "demo.png").size == (1100, 640)
