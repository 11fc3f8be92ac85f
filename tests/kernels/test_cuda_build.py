"""The CUDA sources through NVIDIA's compilers, without a GPU: every architecture, registers, and the committed PTX."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

CUDA = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
SHIPPED_WITH = (12, 6)


class Usage(NamedTuple):
    """What ptxas says of one kernel on one architecture."""

    kernel: str
    architecture: str
    spilled_bytes: int
    registers: int


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} (CUDA 13) is not on PATH")
    return path


def usages(log: str) -> list[Usage]:
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, \d+ bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    return [Usage(m[1], m[2], int(m[3]), int(m[4])) for m in re.finditer(pattern, log, re.DOTALL)]


def check_usages(found: list[Usage], kernels: int) -> None:
    assert len(found) == kernels
    for usage in found:
        states = int(usage.kernel.rsplit("_", 1)[1]) if usage.kernel.startswith(("scan_", "local_")) else 0
        # Three blocks of 128 threads fit a multiprocessor's 65536 registers; a few bytes may spill at 64 states.
        assert usage.registers <= (168 if states <= 16 else 255), usage
        assert usage.spilled_bytes <= (0 if states < 64 else 64), usage


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """``kernels/cuda/generate_ptx.py``."""
    spec = importlib.util.spec_from_file_location("generate_ptx", CUDA / "generate_ptx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nvrtc(generator: ModuleType) -> Any:
    try:
        compiler = generator.Nvrtc(generator.find_nvrtc())
    except generator.CompilerError as error:
        pytest.skip(str(error))
    if compiler.version != SHIPPED_WITH:
        pytest.skip(f"NVRTC is {compiler.version}, the committed PTX is of {SHIPPED_WITH}")
    return compiler


@pytest.mark.slow
def test_nvcc_compiles_for_every_architecture(tmp_path: Path) -> None:
    # One virtual architecture, as shipped, so that the front end runs once; the code does not ask which one it is.
    codes = ",".join(f"sm_{number}" for number in ARCHITECTURES)
    command = [tool("nvcc"), "--std=c++17", "--threads=2", "--Werror=all-warnings", "--ptxas-options=-v", "--fatbin"]
    command += [f"--generate-code=arch=compute_75,code=[{codes},compute_75]", "--compiler-options=-Wall,-Wextra"]
    done = subprocess.run(
        [*command, "--output-file", str(tmp_path / "scan.fatbin"), str(CUDA / "scan.cu")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = usages(done.stdout + done.stderr)
    assert {usage.architecture for usage in found} == {f"sm_{number}" for number in ARCHITECTURES}
    check_usages(found, 43 * len(ARCHITECTURES))


def test_ptxas_takes_the_committed_ptx() -> None:
    ptx = CUDA / "generated" / "scan_sm75.ptx"
    assert ptx.stat().st_size < 1_500_000
    done = subprocess.run(
        [tool("ptxas"), "-arch=sm_87", "-v", str(ptx), "-o", "/dev/null"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    check_usages(usages(done.stderr + done.stdout), 43)


def test_committed_ptx_is_of_these_sources(generator: ModuleType, nvrtc: Any) -> None:
    assert generator.OUTPUT.read_text() == generator.generate(nvrtc), "run kernels/cuda/generate_ptx.py"


def test_cuda_12_6_compiles_for_orin(nvrtc: Any) -> None:
    assert nvrtc.compile("sm_87")[:4] == b"\x7fELF"


def test_other_split_between_the_pipes_compiles(nvrtc: Any) -> None:
    all_special = nvrtc.compile("compute_75", "EM_POLY_IN_16(N)=0").decode()
    half = nvrtc.compile("compute_75", "EM_POLY_IN_16(N)=8").decode()

    def special(ptx: str) -> int:
        kernel = ptx[ptx.index(".entry scan_f32_16(") : ptx.index(".entry local_f32_16(")]
        return kernel.count("ex2.approx.ftz")

    assert special(all_special) - special(half) == 8
