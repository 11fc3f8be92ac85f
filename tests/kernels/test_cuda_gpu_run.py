"""benchmarks/gpu/run.sh without a GPU: it refuses; and, with stand-ins for nvidia-smi and for the steps' programs, it goes through
all of its steps whatever each comes to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
SCRIPT = GPU / "run.sh"

# Of the first GPU, as nvidia-smi prints it.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  -L) echo "GPU 0: stand-in (UUID: GPU-0)" ;;
  *) echo "stand-in, 580.1, 9.0, 143771 MiB" ;;
esac
"""
# Fails in the tests, hangs in the training step; the rest is fine. The record is really written.
PYTHON = f"""#!/bin/sh
echo "ran $*"
case "$*" in
  *run_record.py*) exec {sys.executable} "$@" ;;
  *peer.py*) exit 1 ;;
  *"-m gpu"*) exit 1 ;;
  *train_gpu.py*) exit 124 ;;
esac
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    sanitizer = '#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nexec "$@"\n'
    for name, text in (("nvidia-smi", NVIDIA_SMI), ("python", PYTHON), ("compute-sanitizer", sanitizer)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "COMMIT": "abc"}


def test_stand_ins_every_step_runs_and_what_failed_is_said(stand_ins: dict[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(results)], capture_output=True, text=True, check=False, env=stand_ins, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "failed: tests marked gpu: exit status 1",
        "failed: a training step beside mamba_ssm: exit status 124 (more than 90 s)",
    ]
    document = json.loads((results / "run.json").read_text())
    assert [step["status"] for step in document["steps"]] == [1, 0, 0, 0, 124]
    assert document["device"] == {
        "name": "stand-in",
        "driver_version": "580.1",
        "compute_cap": "9.0",
        "memory.total": "143771 MiB",
    }
    assert {"commit", "date", "packages", "edgemamba"} <= document.keys()
    # Every test that is marked is among the files that are collected.
    (tests,) = [line for line in done.stdout.splitlines() if "-m gpu" in line]
    assert {path.name for path in Path(SCRIPT.parents[2], "tests").rglob("test_*_gpu.py")} <= {
        Path(word).name for word in tests.split()
    }


def test_the_limits_are_below_eight_minutes() -> None:
    limits = [int(limit) for limit in re.findall(r'^\s*step "[^"]+" (\d+) ', SCRIPT.read_text(), re.MULTILINE)]
    assert len(limits) == 5
    assert sum(limits) < 480


def test_without_a_gpu_nothing_is_run(stand_ins: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False, env=stand_ins, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no NVIDIA GPU" in done.stderr


def test_stand_ins_a_bare_machine_is_prepared_once(stand_ins: dict[str, str], tmp_path: Path) -> None:
    """A peer that cannot be built costs the ratios and nothing else."""
    carried = tmp_path / "carried"
    carried.mkdir()
    for name in ("pydantic-2.0-py3-none-any.whl", "mamba_ssm-9.9.tar.gz"):
        (carried / name).touch()
    command = ["bash", str(GPU / "bare.sh"), str(carried), "--prepare-only"]
    said = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, env=stand_ins | {"TMPDIR": str(tmp_path)}, timeout=60
        )
        for _ in range(2)
    ]
    ran = [[line for line in done.stdout.splitlines() if line.startswith("ran ")] for done in said]
    assert len(ran[0]) == 3
    assert "--no-index" in ran[0][0]
    assert ran[0][0].endswith(".whl")
    assert ran[0][1].endswith("--editable .")
    assert "peer.py" in ran[0][2]
    assert [line for line in ran[1] if "pip" in line] == []
    assert "the peer was not built" in said[0].stderr


def test_the_peer_is_its_scan_alone(tmp_path: Path) -> None:
    """A stand-in for mamba_ssm's source archive: the sources lie where they are compiled, the package imports nothing else."""
    root = tmp_path / "mamba_ssm-9.9"
    (root / "mamba_ssm" / "ops").mkdir(parents=True)
    (root / "csrc" / "selective_scan").mkdir(parents=True)
    (root / "csrc" / "selective_scan" / "selective_scan.cpp").write_text("")
    (root / "mamba_ssm" / "__init__.py").write_text('__version__ = "9.9"\n\nimport something_that_is_not_there\n')
    (root / "mamba_ssm" / "ops" / "__init__.py").write_text("scan = 1\n")
    with tarfile.open(tmp_path / "peer.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    folder = tmp_path / "out"
    command = [sys.executable, str(GPU / "peer.py"), str(tmp_path / "peer.tar.gz"), str(folder), "--unpack-only"]
    subprocess.run(command, check=True, timeout=60)
    assert (folder / "csrc" / "selective_scan.cpp").is_file()
    program = "import mamba_ssm, mamba_ssm.ops as ops; print(mamba_ssm.__version__, ops.scan)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "9.9 1\n"
