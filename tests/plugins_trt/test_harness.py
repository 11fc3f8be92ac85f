"""The conformance harness: every check of the C++ program, alone and through the registries of real TensorRT libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from plugins_trt.case_files import write_case, write_cases
from plugins_trt.wheels import DISPATCH, dispatch_library
from scan_cases import CASES, draw

from edgemamba.plugins_trt import BuiltPlugin


def run(harness: Path, *arguments: str | Path) -> str:
    """The harness's output; fails where a check failed or the process did."""
    done = subprocess.run([harness, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if line[:2] != "ok") + done.stderr
    passed, failed = map(int, re.findall(r"^(\d+) passed, (\d+) failed, \d+ skipped$", done.stdout, re.MULTILINE)[0])
    assert passed > 120
    assert failed == 0
    return done.stdout


def test_without_a_tensorrt_library(harness: Path, plugin: BuiltPlugin) -> None:
    output = run(harness, plugin.plugin)
    assert "the logger is told: edgemamba SelectiveScan: delta_softplus" in output


@pytest.mark.parametrize("major", DISPATCH)
def test_in_the_registry_of(major: int, harness: Path, plugin: BuiltPlugin) -> None:
    """The plugin was built with 10.14's headers: in 11.4 this is also the proof that its interfaces did not change."""
    output = run(harness, plugin.plugin, "--tensorrt", dispatch_library(major))
    assert f"plugin ABI of TensorRT {major}" in output
    assert "deregisterLibrary takes the creator away" in output


def test_failures_are_counted(harness: Path, plugin: BuiltPlugin, tmp_path: Path) -> None:
    """A file that is no plugin, one that is no TensorRT, a damaged case: a failed check and exit code 1, no crash."""
    bad = tmp_path / "bad.case"
    good = write_case(tmp_path / "good.case", "good", draw(CASES["vim"]))
    bad.write_bytes(good.read_bytes()[:-8])
    for arguments, message in (
        ([harness], "FAILED"),
        ([plugin.plugin, "--tensorrt", plugin.plugin], "FAILED  plugin registry"),
        ([plugin.plugin, "--case", bad], "FAILED  case file"),
        ([plugin.plugin, "--case", tmp_path], "FAILED  case file"),
    ):
        done = subprocess.run([harness, *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1, done.stdout
        assert message in done.stdout
    assert subprocess.run([harness], capture_output=True, check=False).returncode == 2


def test_case_files_are_read(harness: Path, plugin: BuiltPlugin, tmp_path: Path, golden: Path) -> None:
    """Every case that the GPU test runs, so that a wrong file shows here as well."""
    files = list(write_cases(tmp_path, golden))
    assert len(files) > 3 * len(CASES)
    output = run(harness, plugin.plugin, *(part for file in files for part in ("--case", file)))
    assert len(re.findall(r"^ok +case file ", output, re.MULTILINE)) == len(files)


@pytest.mark.gpu
def test_enqueue_on_the_device(harness: Path, plugin: BuiltPlugin, tmp_path: Path, golden: Path) -> None:
    """Every case under every tactic on device buffers, against the float64 reference."""
    files = list(write_cases(tmp_path, golden))
    output = run(harness, plugin.plugin, *(part for file in files for part in ("--case", file)))
    if found := re.search(r"^skipped enqueue on a device: (.*)$", output, re.MULTILINE):
        pytest.skip(found[1])
    assert len(re.findall(r"^ok .*: error .* of at most ", output, re.MULTILINE)) == 3 * len(files)
