"""The native kernel against the NumPy reference, on every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.native_calls import Arrays, native_backward, random_inputs
from numpy.typing import NDArray

from edgemamba.runtime import native, reference
from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.runtime.operator import INPUT_NAMES

TOLERANCE = {np.float64: 1e-12, np.float32: 5e-6, np.float16: 1.5e-3}


def check(inputs: Arrays, delta_softplus: bool = True, *, gradients: bool = True, seed: int = 0) -> None:
    dtype = inputs["u"].dtype.type
    y = native.selective_scan(**inputs, delta_softplus=delta_softplus, threads=2)
    expected = reference.selective_scan(*inputs.values(), delta_softplus)
    assert_close(y, expected, TOLERANCE[dtype], "y")
    if gradients:
        dy = np.random.default_rng(seed).standard_normal(y.shape).astype(dtype)
        found = native_backward(inputs, dy, delta_softplus, threads=2)
        for name, value in reference.selective_scan_backward(*inputs.values(), delta_softplus, dy=dy).items():
            assert_close(found[name], value, TOLERANCE[dtype], name)


def assert_close(found: NDArray[Any], expected: NDArray[np.float64], tolerance: float, name: str) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=name)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    positions=st.integers(1, 70),
    directions=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 7, 8, 9, 16, 31, 40]),
    states=st.sampled_from([1, 2, 4, 5, 8, 16, 64]),
    part=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
    shared_u=st.booleans(),
    softplus=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16, np.float64]),
    seed=st.integers(0, 1000),
)
def test_random_calls(part: float, softplus: bool, dtype: type[np.floating[Any]], seed: int, **extents: Any) -> None:
    rng = np.random.default_rng(seed)
    inputs = random_inputs(rng, **extents, steps=int(part * extents["positions"]), dtype=dtype)
    if not softplus:  # the step itself, which a model keeps positive
        inputs["delta"] = np.abs(inputs["delta"])
        inputs["delta_bias"] = np.abs(inputs["delta_bias"])
    check(inputs, softplus, seed=seed)


def test_steps_of_any_size() -> None:
    rng = np.random.default_rng(1)
    inputs = random_inputs(rng, positions=60, channels=33, states=8)
    inputs["delta"] = rng.uniform(-100, 100, inputs["delta"].shape).astype(np.float32)
    check(inputs)


def test_very_negative_decay_forgets() -> None:
    rng = np.random.default_rng(2)
    inputs = random_inputs(rng, channels=17, states=16)
    inputs["A"] = -np.exp(rng.uniform(-8, 25, inputs["A"].shape)).astype(np.float32)
    check(inputs, gradients=False)


def test_softplus_keeps_its_digits_where_it_is_small() -> None:
    """At x = -15 softplus is 3.1e-7, less than half an ulp of 1: log(1 + e^x) as it stands would be 0 or 1.2e-7."""
    x = np.linspace(-80, 30, 2001, dtype=np.float32)
    one = np.ones((1, 1, 1, x.size), np.float32)
    y = native.selective_scan(
        u=one,
        delta=x.reshape(one.shape),
        A=np.zeros((1, x.size, 1), np.float32),
        B=np.ones((1, 1, 1, 1), np.float32),
        C=np.ones((1, 1, 1, 1), np.float32),
        D=np.zeros((1, x.size), np.float32),
        delta_bias=np.zeros((1, x.size), np.float32),
        order=np.zeros((1, 1), np.int32),
    )
    # Without a fused multiply-add, x log2(e) is rounded before its fraction is taken.
    tolerance = 4e-6 if native.isa() == "scalar" else 4e-7
    np.testing.assert_allclose(y.ravel(), np.logaddexp(0, x.astype(np.float64)), rtol=tolerance)


def test_growth_overflows_as_it_would_in_float32() -> None:
    inputs = random_inputs(np.random.default_rng(3), positions=4, channels=20)
    inputs["delta"][..., 3] = -1000  # e^(1000 |A|)
    y = native.selective_scan(**inputs, delta_softplus=False)
    assert not np.isfinite(y[..., 3]).all()
    others = np.delete(np.arange(20), 3)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference.selective_scan(*inputs.values(), False)
    assert_close(y[..., others], expected[..., others], 5e-6, "the other channels")


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
def test_nan_is_not_lost(name: str) -> None:
    inputs = random_inputs(np.random.default_rng(4), batch=1, positions=5, channels=11)
    inputs[name].reshape(-1)[0] = np.nan
    assert np.isnan(native.selective_scan(**inputs)).any()


BACKWARD_MEMORY = """
import numpy as np
from kernels.native_calls import INPUT_NAMES, native, random_inputs
from edgemamba.runtime import memory
inputs = random_inputs(np.random.default_rng(0), dtype=np.float32, **{extents})
gradients = {{name: np.full_like(inputs[name], np.nan) for name in INPUT_NAMES[:-1]}}
dy = np.ones((1, inputs["u"].shape[1], inputs["u"].shape[3]), np.float32)
views = [native.view_of(inputs[name], name) for name in INPUT_NAMES]
outputs = [native.view_of(gradient, name) for name, gradient in gradients.items()]
before = memory.resident_bytes() if memory.reset_peak() else None
native.scan_backward(views, True, native.view_of(dy, "dy"), outputs, 2)
print(-1 if before is None else memory.peak_bytes() - before)
"""


def test_backward_keeps_checkpoints_and_not_every_state() -> None:
    """The states of all positions would take 147 MiB here; in a fresh process, where no memory is there to be used again."""
    extents = {"batch": 1, "positions": 3136, "directions": 4, "channels": 192, "states": 16}
    command = [sys.executable, "-c", BACKWARD_MEMORY.format(extents=extents)]
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=True)
    if int(done.stdout) < 0:
        pytest.skip("the system does not tell peaks of memory")
    assert int(done.stdout) < 3136 * 4 * 192 * 16 * 4 / 10


def test_threads_do_not_change_a_bit() -> None:
    inputs = random_inputs(np.random.default_rng(5), positions=100, channels=150, states=16)
    dy = np.ones((2, 100, 150), np.float32)
    one = native.selective_scan(**inputs, threads=1)
    gradients = native_backward(inputs, dy, threads=1)
    for threads in (2, 3):
        assert np.array_equal(native.selective_scan(**inputs, threads=threads), one)
        for name, value in native_backward(inputs, dy, threads=threads).items():
            assert np.array_equal(value, gradients[name]), name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda x: x[0], "u: rank 3, expected 4"),
        ("u", lambda x: x.astype(np.int32), "u: dtype int32"),
        ("u", lambda x: np.concatenate([x, x, x], axis=2), "u: 3 directions, expected 1 or G = 2"),
        ("u", lambda x: x[:, :-1], "u: shape"),
        ("delta", lambda x: x.astype(np.float64), "delta: dtype float64"),
        ("delta", lambda x: x[..., None], "delta: rank 5"),
        ("A", lambda x: x[:, :-1], "A: shape (2, 8, 4), expected (G, D, N) = (2, 9, 4)"),
        ("A", lambda x: x[..., :0], "A: no states"),
        ("B", lambda x: x[..., :-1], "B: shape"),
        ("C", lambda x: x.astype(np.float16), "C: dtype float16"),
        ("D", lambda x: x[0], "D: rank 1"),
        ("delta_bias", lambda x: x.T, "delta_bias: shape"),
        ("order", lambda x: x.astype(np.int64), "order: dtype int64"),
        ("order", lambda x: np.concatenate([x, x[:, :1]], axis=1), "order: 13 steps, but there are 12 positions"),
        ("order", lambda x: np.where(x == 3, 12, x).astype(np.int32), "order: entry 12 at [0, "),
        ("order", lambda x: np.where(x == 3, -1, x).astype(np.int32), "order: entry -1 at [0, "),
        (
            "order",
            lambda x: np.where(x == 3, 5, x).astype(np.int32),
            "order: position 5 is visited twice in direction 0",
        ),
    ],
)
def test_hostile_calls_name_the_argument(name: str, change: Any, message: str) -> None:
    inputs = random_inputs(np.random.default_rng(6))
    inputs[name] = change(inputs[name])
    with pytest.raises(ScanArgumentError) as raised:
        native.selective_scan(**inputs)
    assert str(raised.value).startswith(message)


def test_hostile_backward_calls_name_the_argument() -> None:
    inputs = random_inputs(np.random.default_rng(7))
    with pytest.raises(ScanArgumentError, match=r"^dy: shape \(2, 12, 8\)"):
        native_backward(inputs, np.ones((2, 12, 8), np.float32))
    views = [native.view_of(inputs[name], name) for name in INPUT_NAMES]
    dy = np.ones((2, 12, 9), np.float32)
    wrong: list[native.TensorView | None] = [None] * 7
    wrong[3] = native.view_of(dy, "B")
    with pytest.raises(ScanArgumentError, match=r"^gradient of B: rank 3"):
        native.scan_backward(views, True, native.view_of(dy, "dy"), wrong)
    with pytest.raises(ScanArgumentError, match=r"^gradients: 6 given"):
        native.scan_backward(views, True, native.view_of(dy, "dy"), [None] * 6)
    with pytest.raises(ScanArgumentError, match=r"^inputs: 7 given"):
        native.scan_forward(views[:-1], True, native.view_of(dy, "y"))


@pytest.mark.parametrize("isa", native.available_isas())
def test_every_instruction_set(isa: str) -> None:
    """The rest of this file and the official vectors again, in a process where EDGEMAMBA_ISA forces ``isa``."""
    if "EDGEMAMBA_ISA" in os.environ:
        pytest.skip("this is such a process")
    here = Path(__file__).parent
    files = [str(here / "test_native.py"), str(here / "test_golden.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"EDGEMAMBA_ISA": isa}
    done = subprocess.run(command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_forced_instruction_set_is_used() -> None:
    wanted = os.environ.get("EDGEMAMBA_ISA")
    assert native.isa() == (wanted or native.available_isas()[0])
