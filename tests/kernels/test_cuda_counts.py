"""kernels/cuda/count_instructions.py: the tables of NOTES.md can be made again, from the machine code of this checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CUDA = Path(__file__).resolve().parents[2] / "kernels" / "cuda"

LISTING = """
.L_x_1:
LDS R1, [R2]
.L_x_2:
MUFU.EX2 R3, R3
@P1 BRA `(.L_x_3)
@!P0 MUFU.EX2 R4, R4
FFMA R5, R4, R3, R5
.L_x_3:
@!P3 BRA `(.L_x_2)
STS [R2], R5
BAR.SYNC.DEFER_BLOCKING 0x0
@P2 BRA `(.L_x_1)
EXIT
.L_x_4:
BRA `(.L_x_4)
"""


@pytest.fixture(scope="module")
def counting() -> ModuleType:
    sys.path.insert(0, str(CUDA))
    try:
        return __import__("count_instructions")
    finally:
        sys.path.remove(str(CUDA))


def test_loops_are_found_and_counted(counting: ModuleType) -> None:
    found = counting.count(LISTING.split("\n")[1:-1], 2, 8)
    assert found.step["all"] == 5
    assert found.step["2^x"] == 2
    assert found.tile["all"] == 4
    assert found.of("sts") == 1 / 8
    with pytest.raises(counting.CompilerError, match="not recognised"):
        counting.count(LISTING.split("\n")[1:-1], 16, 8)


def test_the_table_of_one_architecture() -> None:
    """Run as a person runs it: a 2^x a state and one of softplus, and no more instructions than NOTES.md says."""
    command = [sys.executable, str(CUDA / "count_instructions.py"), "--architectures", "90"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| sm_90")]
    if "not" in row:  # this nvdisasm does not know the architecture
        pytest.skip(row)
    cells = [float(cell) for cell in re.findall(r"[\d.]+(?= \|)", row)[1:]]
    registers, blocks, _step, _tile, special = cells[:5]
    issue, unit, _fp32 = cells[-3:]
    assert registers <= 168
    assert blocks == 3
    assert special == 17
    assert unit == 8 * special
    assert issue < 1.15 * unit
