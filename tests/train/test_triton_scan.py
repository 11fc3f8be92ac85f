"""The Triton kernels without a GPU: Triton's interpreter against float64, compiling ahead, the tuner, and a missing Triton.

What only a GPU can show is in test_triton_gpu.py.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train.test_selective_scan import make_inputs

from edgemamba.runtime.errors import MissingExtraError
from edgemamba.train import triton_dispatch

SCRIPT = Path(__file__).with_name("triton_interpreted.py")
# Its cases are the functions without arguments; it cannot be imported here, where Triton does not interpret.
CASES = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.args.args + node.args.kwonlyargs
]


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What became of each case that this run wants, all from one process."""
    pytest.importorskip("triton", reason="Triton is not installed")
    wanted = [item.callspec.params["case"] for item in request.session.items if _is_interpreted(item)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *dict.fromkeys(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str | None] = json.loads(done.stdout)
    return outcomes


def _is_interpreted(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == "test_interpreted_kernels_equal_float64"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_equal_float64(case: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[case] is None, interpreted[case]


@pytest.mark.parametrize(
    ("arch", "dtype", "states"),
    [
        (80, "fp16", 16),
        *(
            pytest.param(arch, dtype, states, marks=pytest.mark.slow)
            for arch, dtype, states in [
                (75, "fp16", 16),
                (75, "fp32", 16),
                (80, "bf16", 1),
                (86, "bf16", 16),
                (87, "fp16", 16),
                (89, "fp32", 4),
                (90, "bf16", 16),
                (100, "bf16", 16),
                (120, "bf16", 16),
            ]
        ),
    ],
)
def test_kernels_compile_without_a_gpu_and_without_spills(arch: int, dtype: str, states: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from edgemamba.train.triton_scan import ahead

    for built in (
        ahead.compile_forward(arch, dtype, states),
        ahead.compile_forward(arch, dtype, states, checkpoints=True),
        ahead.compile_backward(arch, dtype, states),
    ):
        assert 0 < built.registers <= 255
        assert built.spill_stores == built.spill_loads == 0, built


@pytest.mark.parametrize(
    "ones",
    [
        ("blocks", "directions", "value_directions"),
        ("value_directions", "positions", "steps"),
        ("blocks", "directions", "value_directions", "positions", "steps", "channels", "n_states"),
    ],
    ids=len,
)
def test_kernels_compile_for_extents_of_one_which_are_constants(ones: tuple[str, ...]) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from edgemamba.train.triton_scan import ahead

    states = 1 if "n_states" in ones else 2
    for checkpoints in (False, True):
        assert ahead.compile_forward(80, "fp32", states, checkpoints=checkpoints, ones=ones).code
    assert ahead.compile_backward(80, "fp32", states, ones=(*ones, "images")).code


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    pytest.importorskip("triton", reason="Triton is not installed")
    from edgemamba.train.triton_scan import tuning

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEMAMBA_TRITON_TUNE", raising=False)
    monkeypatch.setattr(tuning, "_chosen", {})
    return tuning


def test_the_tuner_takes_the_fastest_once_and_remembers_it(tuning, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    inputs = list(make_inputs(dtype=torch.float32).values())
    ran: list[str] = []
    cost = {"slow": 3.0, "fast": 1.0, "middling": 2.0}

    def milliseconds_of_a_stand_in(call: Callable[[], object]) -> float:
        call()
        return cost[ran[-1]]

    def choose(kind: str, names: tuple[str, ...] = tuple(cost)) -> str:
        chosen: str = tuning.choose(kind, inputs, names, ran.append, milliseconds_of_a_stand_in)
        return chosen

    assert choose("forward") == "fast"
    assert ran == ["slow", "fast", "middling"]
    assert choose("forward") == "fast"
    assert len(ran) == 3
    [file] = tmp_path.rglob("*.json")
    assert list(json.loads(file.read_text()).values()) == ["fast"]

    monkeypatch.setattr(tuning, "_chosen", {})  # another process
    assert choose("forward") == "fast"
    assert len(ran) == 3
    monkeypatch.setattr(tuning, "_chosen", {})
    assert choose("forward", ("slow", "middling")) == "middling"  # a release whose candidates are others

    file.write_text("{ half a fi")
    monkeypatch.setattr(tuning, "_chosen", {})
    assert choose("backward") == "fast"
    monkeypatch.setenv("EDGEMAMBA_TRITON_TUNE", "0")
    assert choose("backward") == "slow"


def test_the_tuners_key_tells_calls_apart(tuning) -> None:  # type: ignore[no-untyped-def]
    def key(**case: int | bool | torch.dtype) -> str:
        found: str = tuning.call_key("forward", list(make_inputs(**{"dtype": torch.float32, **case}).values()))  # type: ignore[arg-type]
        return found

    assert key() == key(positions=8)  # both between 5 and 8 steps
    others = [
        key(positions=9),
        key(channels=6),
        key(states=4),
        key(shared=True),
        key(dtype=torch.float16),
        key(batch=3),
    ]
    assert len({key(), *others}) == 1 + len(others)


def test_a_missing_triton_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"^triton is needed for the selective scan on a GPU .*: pip install"):
        triton_dispatch.launcher(torch.zeros(1))
