"""GStreamer pipelines, by the system's Python: its OpenCV (Debian's, as JetPack's) has GStreamer, and PyPI's has not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import edgemamba.runtime.sources as package

SCRIPT = """
import json, sys
from itertools import islice
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources import camera, open_source
camera.OPEN_SECONDS, camera.SILENCE_SECONDS = 6, 1
name, count = sys.argv[1], int(sys.argv[2])
said = {"frames": [], "error": ""}
try:
    with open_source(name) as source:
        said |= {"name": source.name, "live": source.live, "fps": source.fps}
        for frame in islice(source, count):
            said["frames"].append([*frame.pixels.shape, *frame.pixels[0, 0].tolist()])
except SourceError as error:
    said["error"] = str(error)
print("RESULT", json.dumps(said))
"""
LIVE = "videotestsrc is-live=true pattern=red {}! video/x-raw,width=64,height=48,framerate=20/1"


def run(source: str, count: int = 3) -> dict[str, Any]:
    """Open a source there; skip where there is no OpenCV with GStreamer."""
    python = shutil.which("python3", path="/usr/bin")
    probe = "import cv2; assert 'YES' in cv2.getBuildInformation().split('GStreamer:')[1].split('\\n')[0]"
    if python is None or subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("the system's Python has no OpenCV with GStreamer: apt install python3-opencv")
    root = Path(package.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", SCRIPT, source, str(count)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result


def test_a_live_pipeline() -> None:
    said = run(f"gst://{LIVE.format('')}")
    assert not said["error"]
    assert said["frames"] == [[48, 64, 3, 255, 0, 0]] * 3
    assert (said["live"], said["fps"]) == (True, 20)


def test_a_pipeline_that_stops() -> None:
    said = run(f"gst://{LIVE.format('num-buffers=5 ')}", 100)
    assert "stopped giving frames after" in said["error"]
    assert 1 <= len(said["frames"]) <= 5


@pytest.mark.slow
def test_a_pipeline_that_cannot_be_built() -> None:
    """OpenCV 4.6 hangs over it for ever; the caller does not."""
    said = run("gst://nosuchelement name=x")
    assert said["error"].startswith("gst://nosuchelement name=x ")
    assert "try the pipeline with gst-launch-1.0" in said["error"]


@pytest.mark.slow
def test_a_csi_camera_where_there_is_no_jetson() -> None:
    said = run("csi://0")
    assert said["error"].startswith("csi://0 ")
