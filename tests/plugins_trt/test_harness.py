"""The conformance harness: every check of the C++ program, alone and through the registries of real TensorRT libraries."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from plugins_trt.case_files import write_case, write_cases
from plugins_trt.wheels import DISPATCH, dispatch_library
from scan_cases import CASES, draw

from edgemamba.plugins_trt import BuiltPlugin
from edgemamba.plugins_trt.building import run_compiler
from edgemamba.plugins_trt.sources import find_sources


def run(harness: Path, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """The harness's output; fails where a check failed or the process did."""
    command = [harness, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
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


@pytest.mark.slow
def test_enqueue_on_a_stand_in_for_the_gpu(
    harness: Path, plugin: BuiltPlugin, compiler: list[str], tmp_path: Path, golden: Path
) -> None:
    """The same with libcuda.so.1 replaced: memory is the host's, and launches run the kernels' code on the host. The plugin,
    its workspace, its arguments and the embedded PTX's names are real; the GPU is not."""
    kernels = find_sources().root / "kernels"
    sources = [Path(__file__).with_name("emulated_driver.cpp"), kernels / "tests" / "cuda_block.cpp"]
    sources += [kernels / "src" / name for name in ("arguments.cpp", "cuda_arguments.cpp", "cuda_plan.cpp")]
    includes = [f"-I{kernels / folder}" for folder in (".", "src", "include", "tests")]
    command = [*compiler, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-shared", *includes, *map(str, sources)]
    run_compiler([*command, "-o", str(tmp_path / "libcuda.so.1")])
    files = list(write_cases(tmp_path, golden))
    arguments = [part for file in files for part in ("--case", file)]
    output = run(harness, plugin.plugin, *arguments, environment=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})
    assert "a stream on the stand-in" in output
    assert len(re.findall(r"^ok .*: error .* of at most ", output, re.MULTILINE)) == 3 * len(files)
