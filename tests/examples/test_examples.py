"""Each example runs as its docstring says, on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of hustvl/Vim's releases (weights under `model`), with random weights."""
    torch = pytest.importorskip("torch")
    from edgemamba.train import create_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("official") / "vim_t_midclstok.pth"
    torch.save({"model": create_model("vim_tiny").state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "vim_tiny"
    done = run_example("official_checkpoint.py", checkpoint, folder)
    assert done.returncode == 0, done.stderr
    assert "parity: passed" in done.stdout
    return folder


@pytest.mark.slow
def test_official_checkpoint_becomes_a_verified_bundle(bundle: Path) -> None:
    report = json.loads((bundle / "parity.json").read_text())
    assert report["passed"] is True


@pytest.mark.slow
def test_camera_loop_reads_a_video_in_place_of_a_camera(bundle: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in (0, 80, 160):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    done = run_example("camera_loop.py", bundle, clip)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "%" in done.stdout


@pytest.mark.slow
def test_dicom_folder_becomes_json_lines(bundle: Path, tmp_path: Path) -> None:
    pydicom_data = pytest.importorskip("pydicom.data")
    study = tmp_path / "study"
    study.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm"):
        source = Path(str(pydicom_data.get_testdata_file(name, download=False)))
        (study / name).write_bytes(source.read_bytes())
    out = tmp_path / "results.jsonl"
    done = run_example("dicom_folder.py", bundle, study, out)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    assert "2 frames" in done.stdout
