"""The benchmarks of the pipeline in a short form: the long ones and their figures are in docs/reliability.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cv2")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and descriptors are read from /proc (Linux)")
def test_a_short_soak(tmp_path: Path) -> None:
    """Every 20,000 frames the long run may grow by 2 MB; this one by little more, or something is kept for each frame."""
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    path = tmp_path / "soak.json"
    assert "passed" in run("soak.py", "--frames", "15000", "--json", str(path), "--check")
    figures = json.loads(path.read_text())
    assert figures["results"] == 14850
    assert figures["skipped"] == 150
    assert figures["rss_growth_mb"] < 6
    assert figures["threads"][0] == figures["threads"][2]
    assert figures["descriptors"][0] == figures["descriptors"][2]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins itself to one core (Linux)")
def test_the_overhead_benchmark_runs(tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    run("pipeline_overhead.py", "--frames", "5", "--rounds", "1", "--seconds", "0.3", "--json", str(path))
    figures = json.loads(path.read_text())
    assert {"edgemamba", "OpenCV loop, INTER_LINEAR", "OpenCV loop, INTER_AREA"} <= set(figures["cost_ms"])
    assert all(case["results"] + case["dropped"] == 9 for case in figures["latency"])
