"""Scans with their answers in the form that the C++ harness reads (plugins_trt/harness/case_file.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from kernels.golden_ops import golden_scans
from numpy.typing import NDArray
from onnx import TensorProto
from scan_cases import CASES, TYPED, draw, rounded

from edgemamba.runtime.operator import INPUT_NAMES
from edgemamba.runtime.reference import selective_scan

# Largest error relative to the largest |y|: the kernels' bar in float32, the rounding of the result in the others.
TOLERANCE = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 1e-3, TensorProto.BFLOAT16: 8e-3}
NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
MAX_STATES = 64


def write_case(
    path: Path, name: str, inputs: dict[str, NDArray[Any]], dtype: int = TensorProto.FLOAT, softplus: bool = True
) -> Path:
    """Write one scan; the answer is the NumPy reference's in float64, on the inputs as they are in ``dtype``."""
    inputs = rounded({key: _single(value) for key, value in inputs.items()}, dtype)
    y = selective_scan(**inputs, delta_softplus=softplus)
    batch, positions, directions, channels = inputs["delta"].shape
    states, steps = inputs["A"].shape[2], inputs["order"].shape[1]
    extents = (batch, positions, inputs["u"].shape[2], directions, channels, states, steps)
    text = name.encode()
    with path.open("wb") as file:
        file.write(b"EMCASE01" + struct.pack("<i", len(text)) + text)
        file.write(struct.pack("<ii7qd", dtype, softplus, *extents, TOLERANCE[dtype]))
        for key in INPUT_NAMES:
            file.write(_encode(inputs[key], dtype if key in TYPED else None).tobytes())
        file.write(y.astype("<f8").tobytes())
    return path


def write_cases(folder: Path, golden: Path) -> Iterator[Path]:
    """The CPU operator's cases in each element type, then the official vectors in float32."""
    for name, case in CASES.items():
        for dtype, suffix in NAMES.items():
            label = f"{name}_{suffix}"
            yield write_case(folder / f"{label}.case", label, draw(case), dtype, case.delta_softplus)
    for scan in golden_scans(golden):
        if scan.tensors["A"].shape[1] <= MAX_STATES:
            label = "golden_" + scan.name.replace("/", "_")
            yield write_case(folder / f"{label}.case", label, scan.inputs(np.float32), softplus=scan.delta_softplus)


def _single(value: NDArray[Any]) -> NDArray[Any]:
    return value if value.dtype == np.int32 else value.astype(np.float32)


def _encode(value: NDArray[Any], dtype: int | None) -> NDArray[Any]:
    value = np.ascontiguousarray(value)
    if dtype == TensorProto.FLOAT16:
        return value.astype("<f2")
    if dtype == TensorProto.BFLOAT16:  # already rounded: the upper half is all there is
        return (value.view(np.uint32) >> 16).astype("<u2")
    return value
