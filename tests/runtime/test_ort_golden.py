"""Vectors of the official selective scan through ONNX Runtime: our kernel, and the function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import golden_folder
from numpy.typing import NDArray

from edgemamba.export.graph import selective_scan_model
from edgemamba.runtime.engines.ort import make_session

Arrays = dict[str, NDArray[Any]]
# What the official function returned in float64 on the same inputs.
EXPECTED = ("out64", "y_fp64")


class Golden(NamedTuple):
    """Tensors of one case, in upstream's layout: channels before positions, B and C maybe in groups."""

    name: str
    tensors: Arrays
    delta_softplus: bool


def cases(folder: Path) -> Iterator[Golden]:
    """Every case of every file in ``ops/`` that holds a scan: ``<case>/u`` and so on beside a float64 result."""
    for path in sorted((folder / "ops").glob("*.safetensors")):
        from safetensors.numpy import load_file

        grouped: dict[str, Arrays] = {}
        for key, value in load_file(path).items():
            prefix, _, name = key.rpartition("/")
            grouped.setdefault(prefix, {})[name] = value
        sidecar = json.loads(path.with_suffix(".json").read_text())
        facts = dict(sidecar.get("sub_cases", {}))
        facts |= {f"case{entry['case']}": entry for entry in sidecar.get("cases", []) if "case" in entry}
        for prefix, tensors in grouped.items():
            is_scan = {"u", "delta", "A", "B", "C"} <= set(tensors) and set(EXPECTED) & set(tensors)
            if is_scan and prefix in facts and not np.iscomplexobj(tensors["A"]):
                yield Golden(f"{path.stem}/{prefix}", tensors, bool(facts[prefix]["delta_softplus"]))


def group_count(tensors: Arrays) -> int:
    """Runs of channels that share B and C. Where one of them is constant, (E, N), each channel has its own."""
    if tensors["B"].ndim == 2 or tensors["C"].ndim == 2:
        return int(tensors["A"].shape[0])
    return max(tensors[name].shape[1] if tensors[name].ndim == 4 else 1 for name in "BC")


def by_group(tensors: Arrays, name: str, groups: int) -> NDArray[Any]:
    """B or C, which upstream takes as (E, N), (B, N, L) or (B, G, N, L), as (B, groups, N, L)."""
    value = tensors[name]
    batch, _, length = tensors["u"].shape
    if value.ndim == 2:
        return np.broadcast_to(value[None, :, :, None], (batch, *value.shape, length))
    value = value[:, None] if value.ndim == 3 else value
    return np.repeat(value, groups // value.shape[1], axis=1)


def group_inputs(tensors: Arrays, group: int, groups: int) -> Arrays:
    """The operator's inputs for the channels of one group, which are a direction of their own."""
    size = tensors["A"].shape[0] // groups
    mine = slice(group * size, (group + 1) * size)

    def rows(name: str) -> NDArray[Any]:  # (B, E, L) -> (B, L, 1, size)
        return tensors[name][:, mine].transpose(0, 2, 1)[:, :, None]

    def projection(name: str) -> NDArray[Any]:  # -> (B, L, 1, N)
        value = by_group(tensors, name, groups)
        return value[:, group].transpose(0, 2, 1)[:, :, None]

    def weight(name: str) -> NDArray[Any]:
        return tensors.get(name, np.zeros(tensors["A"].shape[0], np.float32))[None, mine]

    inputs = {
        "u": rows("u"),
        "delta": rows("delta"),
        "A": tensors["A"][None, mine],
        "B": projection("B"),
        "C": projection("C"),
        "D": weight("D"),
        "delta_bias": weight("delta_bias"),
    }
    contiguous = {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}
    return contiguous | {"order": np.arange(tensors["u"].shape[2], dtype=np.int32)[None]}


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "function"])
def test_official_vectors(request: pytest.FixtureRequest, kernel: bool) -> None:
    found = list(cases(golden_folder(request.config)))
    if not found:
        pytest.skip("this golden folder holds no scans")
    sessions = {
        softplus: make_session(
            selective_scan_model(delta_softplus=softplus).SerializeToString(), kernel=kernel, threads=1
        )
        for softplus in (True, False)
    }
    for case in found:
        tensors = case.tensors
        if any(tensors[name].dtype != np.float32 for name in ("u", "delta", "A", "B", "C")):
            continue
        groups = group_count(tensors)
        session = sessions[case.delta_softplus]
        parts = [session.run(None, group_inputs(tensors, group, groups))[0] for group in range(groups)]
        y = np.concatenate(parts, axis=2).transpose(0, 2, 1).astype(np.float64)
        if "z" in tensors:
            z = tensors["z"].astype(np.float64)
            y *= z / (1 + np.exp(-z))
        expected = next(tensors[name] for name in EXPECTED if name in tensors)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 * scale, err_msg=case.name)
