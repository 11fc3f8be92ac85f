"""The NumPy reference and the native kernel against the official scan: outputs and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import golden_folder
from kernels.golden_ops import FLOATING, GoldenScan, golden_scans
from kernels.native_calls import native_backward
from numpy.typing import NDArray

from edgemamba.runtime import native, reference
from edgemamba.runtime.operator import INPUT_NAMES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scan" in metafunc.fixturenames:
        scans = list(golden_scans(golden_folder(metafunc.config)))
        metafunc.parametrize("scan", scans, ids=[scan.name for scan in scans])


def assert_close(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def tolerance_of(scan: GoldenScan) -> float:
    """Some modules recorded their scan in float32 only."""
    return 1e-9 if scan.expected.dtype == np.float64 else 4e-6


def test_reference(scan: GoldenScan) -> None:
    inputs = scan.inputs()
    y = reference.selective_scan(*(inputs[name] for name in INPUT_NAMES), scan.delta_softplus)
    assert_close(scan.output(y), scan.expected, tolerance_of(scan))
    if scan.has_gradients:
        found = reference.selective_scan_backward(
            *(inputs[name] for name in INPUT_NAMES), scan.delta_softplus, dy=scan.dy()
        )
        check_gradients(scan, found, 1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_native(scan: GoldenScan, dtype: type[np.floating[Any]]) -> None:
    inputs = scan.inputs(dtype)
    y = native.selective_scan(**inputs, delta_softplus=scan.delta_softplus, threads=2)
    assert y.dtype == dtype
    single = dtype == np.float32
    assert_close(scan.output(y), scan.expected, 4e-6 if single else tolerance_of(scan))
    if scan.has_gradients:
        check_gradients(scan, native_backward(inputs, scan.dy(dtype), scan.delta_softplus), 4e-6 if single else 1e-9)


def check_gradients(scan: GoldenScan, found: dict[str, NDArray[Any]], tolerance: float) -> None:
    for name in FLOATING:
        if name in scan.tensors:
            assert_close(scan.gradient(name, found[name]), scan.tensors[f"grad64_{name}"], tolerance)
