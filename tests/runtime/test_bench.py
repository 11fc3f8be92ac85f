"""`edgemamba bench` on a small bundle: real processes, real sessions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_bundle import SIZE, write_scan_bundle

from edgemamba.runtime import memory
from edgemamba.runtime.benchmark import Budget, Configuration, Measurement, measure, plan
from edgemamba.runtime.bundle import MODEL, Bundle
from edgemamba.runtime.cli import main
from edgemamba.runtime.cpu import usable_threads
from edgemamba.runtime.errors import EngineError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scan_bundle(tmp_path_factory.mktemp("bundles") / "dynamic", dynamic=True)


def run(*arguments: str) -> int:
    """The exit code of the command line, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    return int(ended.value.code or 0)


def test_json_holds_the_figures_and_their_provenance(dynamic: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    arguments = ["--batch", "1,3", "--size", f"{SIZE},32x48", "--iterations", "7", "--threads", "1"]
    assert run(str(dynamic.path), *arguments, "--json", str(target)) == 0
    document: dict[str, Any] = json.loads(target.read_text())
    assert document["bundle"]["sha256"] == dynamic.manifest.files[MODEL]
    assert {"date", "cpu", "isa", "packages", "python", "edgemamba", "commit"} <= set(document["provenance"])
    results = document["results"]
    assert [(r["batch"], r["height"], r["width"], r["backend"]) for r in results] == [
        (batch, *size, backend)
        for size in ((SIZE, SIZE), (32, 48))
        for batch in (1, 3)
        for backend in ("ort-cpu", "ort-function")
    ]
    for result in results:
        assert result["runs"] == 7
        latency = result["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        assert result["frames_per_second"] == pytest.approx(1e3 * result["batch"] / latency["mean"])
        assert result["engine"]["threads"] == 1


def test_stdout_is_json_alone(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(bundle.path), "--backend", "ort-cpu", "--iterations", "2", "--json", "-") == 0
    output = capsys.readouterr()
    assert [result["backend"] for result in json.loads(output.out)["results"]] == ["ort-cpu"]
    assert "p50" in output.err


def test_table_and_plot(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "bench.png"
    assert run(str(bundle.path), "--backend", "auto", "--seconds", "0.1", "--plot", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "ort-cpu" in table
    assert "ort-function" not in table


def test_a_bar_that_is_missed_is_exit_1(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [str(bundle.path), "--backend", "ort-cpu", "--iterations", "3"]
    assert run(*quick, "--max-ms", "60000") == 0
    assert run(*quick, "--max-ms", "0.000001") == 1
    assert "above the bar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64"], "the input is fixed at 16x16; 64x64 needs a bundle exported for it"),
        (["--size", "0"], "--size takes"),
        (["--size", "8x"], "--size takes"),
        (["--batch", "0"], "--batch takes"),
        (["--batch", "1,,2"], "--batch takes"),
        (["--backend", "ort-gpu"], "there is no backend 'ort-gpu'"),
        (["--json", "/nowhere/bench.json", "--iterations", "1"], "/nowhere/bench.json cannot be written"),
    ],
)
def test_bad_usage_is_one_line(
    bundle: Bundle, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(bundle.path), *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_fixed_batch_is_named(bundle: Bundle) -> None:
    card = bundle.manifest.input.model_copy(update={"shape": (1, SIZE, SIZE, 3)})
    fixed = Bundle(bundle.path, bundle.manifest.model_copy(update={"input": card}))
    with pytest.raises(EngineError, match="the batch is fixed at 1; 2 cannot be measured"):
        plan(fixed, ["ort-cpu"], [1, 2])


def test_one_failure_does_not_lose_the_others(bundle: Bundle) -> None:
    """The second asks the graph for a size that it does not take."""
    good, bad = Configuration("ort-cpu", 1, SIZE, SIZE), Configuration("ort-cpu", 1, 8, SIZE)
    measured = {m.configuration: m for m in measure(bundle, [bad, good], Budget(iterations=3))}
    assert len(measured[good].latencies_ms) == 3
    assert measured[bad].latencies_ms == []
    assert "frames: uint8 (1, 8, 16, 3), expected" in str(measured[bad].error)
    assert "error" in measured[bad].to_json()


def test_a_process_that_dies_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.runtime.benchmark._WORKER", "no_such_module")
    (measurement,) = measure(bundle, [Configuration("ort-cpu", 1, SIZE, SIZE)])
    assert "No module named" in str(measurement.error)


def test_backends_of_a_point_take_turns(bundle: Bundle) -> None:
    order: list[str] = []
    configurations = plan(bundle, ["ort-cpu", "ort-function"])
    list(measure(bundle, configurations, Budget(iterations=5), lambda c: order.append(c.backend)))
    assert order == ["ort-cpu", "ort-function"] * 5


@pytest.mark.skipif(memory.resident_bytes() is None, reason="the system does not tell")
def test_peak_memory_grows_with_the_batch(dynamic: Bundle) -> None:
    """The graph turns the frames into float32: 12 MiB of pictures are 48 MiB at least, twice."""
    small, large = (Configuration("ort-cpu", batch, 256, 256) for batch in (1, 64))
    peaks = {m.configuration: m.peak_bytes for m in measure(dynamic, [small, large], Budget(iterations=2))}
    if peaks[large] is None:
        pytest.skip("the system does not let the peak be reset")
    assert peaks[large] > 64 * 256 * 256 * 3 * 4
    assert (peaks[small] or 0) < peaks[large] / 4


def test_peak_follows_an_allocation() -> None:
    if not memory.reset_peak() or (before := memory.peak_bytes()) is None:
        pytest.skip("the system does not tell")
    held = np.ones(2**23)  # 64 MiB, touched
    after = memory.peak_bytes()
    assert after is not None
    assert after - before > 0.9 * held.nbytes


def test_throughput_counts_frames() -> None:
    measurement = Measurement(Configuration("x", 4, 8, 8), latencies_ms=[10.0, 10.0, 20.0])
    assert measurement.throughput == pytest.approx(300.0)
    assert measurement.percentile(50) == 10.0


def test_ctrl_c_leaves_no_process(bundle: Bundle) -> None:
    command = [sys.executable, "-m", "edgemamba", "bench", str(bundle.path), "--seconds", "60"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 30
        while len(workers := _children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(workers) == 2
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("the system does not list child processes")
    return [int(child) for child in listed.read_text().split()]


def test_usable_threads_regard_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity masks here")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_noticed_before_measuring(
    colour_bundle: Path,
    tmp_path: Path,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edgemamba.runtime.commands.bench._measure", lambda *a: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(colour_bundle), option, str(tmp_path / "missing" / "file.png")])
    assert stop.value.code == 2
    assert "missing" in capsys.readouterr().err
