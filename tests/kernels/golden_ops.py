"""Official vectors of the scan, as calls of our operator.

Upstream holds channels before positions and lets runs of channels share B and C. Here each such run is a direction that
visits positions of its own: P = groups * L, S = L. So one call answers for all groups, and partial orders are exercised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
FLOATING = ("u", "delta", "A", "B", "C", "D", "delta_bias")


@dataclass(frozen=True)
class GoldenScan:
    """One case in upstream's layout: u, delta (B, E, L); A (E, N); B, C (E, N), (B, N, L) or (B, G, N, L); D, delta_bias (E,).

    Attributes:
        name: file and case.
        tensors: upstream's inputs; optional ``z`` (B, E, L), ``w`` (the gradient of the gated output), ``grad64_*``.
        expected: the official output (B, E, L), gated where there is a ``z``; float64, or float32 where that is all there is.
    """

    name: str
    tensors: Arrays
    expected: NDArray[Any]
    delta_softplus: bool = True

    @property
    def groups(self) -> int:
        """Runs of channels that share B and C; a constant B or C, (E, N), is a run for each channel."""
        if self.tensors["B"].ndim == 2 or self.tensors["C"].ndim == 2:
            return int(self.tensors["A"].shape[0])
        return max(self.tensors[name].shape[1] if self.tensors[name].ndim == 4 else 1 for name in "BC")

    @property
    def length(self) -> int:
        return int(self.tensors["u"].shape[2])

    @property
    def has_gradients(self) -> bool:
        return "w" in self.tensors

    def inputs(self, dtype: type[np.floating[Any]] = np.float64) -> Arrays:
        """The operator's eight inputs, the seven real ones in ``dtype``."""
        groups, weights = self.groups, self.tensors["A"].shape[0]
        zeros = np.zeros(weights)
        own = {
            "u": self._rows(self.tensors["u"]),
            "delta": self._by_direction(self._rows(self.tensors["delta"])),
            "A": self.tensors["A"].reshape(groups, -1, self.tensors["A"].shape[1]),
            "B": self._by_direction(self._projection("B")),
            "C": self._by_direction(self._projection("C")),
            "D": self.tensors.get("D", zeros).reshape(groups, -1),
            "delta_bias": self.tensors.get("delta_bias", zeros).reshape(groups, -1),
        }
        inputs = {name: np.ascontiguousarray(value, dtype) for name, value in own.items()}
        return inputs | {"order": np.arange(groups * self.length, dtype=np.int32).reshape(groups, -1)}

    def output(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """The operator's (B, P, D) in upstream's layout and gated, as ``expected`` is."""
        return self._channels(y) * self._gate()

    def dy(self, dtype: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
        """The gradient of y for which ``expected_gradient`` holds."""
        return np.ascontiguousarray(self._rows(self.tensors["w"] * self._gate())[:, :, 0], dtype)

    def gradient(self, name: str, value: NDArray[Any]) -> NDArray[np.float64]:
        """Our gradient of input ``name`` in upstream's layout."""
        value = value.astype(np.float64)
        if name == "u":
            return self._channels(value[:, :, 0])
        if name == "delta":
            return self._channels(self._own_direction(value))
        if name in ("B", "C"):
            batch = value.shape[0]
            split = self._own_direction(value).reshape(batch, self.groups, self.length, -1).transpose(0, 1, 3, 2)
            upstream = self.tensors[name]
            if upstream.ndim == 2:
                result = split.sum((0, 3))
            else:
                fewer = 1 if upstream.ndim == 3 else upstream.shape[1]
                result = split.reshape(batch, fewer, -1, *split.shape[2:]).sum(2)
            return np.asarray(result.reshape(upstream.shape))
        return value.reshape(self.tensors[name].shape)

    def _rows(self, value: NDArray[Any]) -> NDArray[Any]:
        """(B, E, L) -> (B, P, 1, D)."""
        batch = value.shape[0]
        split = value.reshape(batch, self.groups, -1, self.length).transpose(0, 1, 3, 2)
        return split.reshape(batch, self.groups * self.length, 1, -1)

    def _channels(self, value: NDArray[Any]) -> NDArray[np.float64]:
        """(B, P, D) -> (B, E, L)."""
        batch = value.shape[0]
        split = value.astype(np.float64).reshape(batch, self.groups, self.length, -1).transpose(0, 1, 3, 2)
        return split.reshape(batch, -1, self.length)

    def _projection(self, name: str) -> NDArray[Any]:
        """B or C -> (B, P, 1, N)."""
        value, batch = self.tensors[name], self.tensors["u"].shape[0]
        if value.ndim == 2:
            value = np.broadcast_to(value[None, :, :, None], (batch, *value.shape, self.length))
        elif value.ndim == 3:
            value = value[:, None]
        value = np.repeat(value, self.groups // value.shape[1], axis=1).transpose(0, 1, 3, 2)
        return value.reshape(batch, self.groups * self.length, 1, -1)

    def _by_direction(self, value: NDArray[Any]) -> NDArray[Any]:
        """(B, P, 1, X) -> (B, P, G, X): each direction's values at its positions, NaN (never read) elsewhere."""
        result = np.full((*value.shape[:2], self.groups, value.shape[3]), np.nan)
        position = np.arange(value.shape[1])
        result[:, position, position // self.length] = value[:, :, 0]
        return result

    def _own_direction(self, value: NDArray[Any]) -> NDArray[Any]:
        """The inverse of :meth:`_by_direction`, without the axis of 1."""
        position = np.arange(value.shape[1])
        return value[:, position, position // self.length]

    def _gate(self) -> NDArray[np.float64]:
        z = self.tensors.get("z")
        if z is None:
            return np.ones(1)
        z = z.astype(np.float64)
        return z / (1 + np.exp(-z))


def golden_scans(folder: Path) -> Iterator[GoldenScan]:
    """Every scan in ``folder/ops``: whole cases, and those recorded in the middle of an official module."""
    from safetensors.numpy import load_file

    for path in sorted((folder / "ops").glob("*.safetensors")):
        tensors = load_file(path)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        yield from _whole_cases(path.stem, tensors, sidecar)
        if "mid/scan_u" in tensors:
            yield _inside_a_module(path.stem, tensors)


def _whole_cases(stem: str, tensors: Arrays, sidecar: dict[str, Any]) -> Iterator[GoldenScan]:
    facts = dict(sidecar.get("sub_cases", {}))
    facts |= {f"case{entry['case']}": entry for entry in sidecar.get("cases", []) if "case" in entry}
    by_case: dict[str, Arrays] = {}
    for key, value in tensors.items():
        prefix, _, name = key.rpartition("/")
        by_case.setdefault(prefix, {})[name] = value
    for prefix, own in by_case.items():
        expected = own.get("out64", own.get("y_fp64"))
        is_real = all(name in own and own[name].dtype == np.float32 for name in ("u", "delta", "A", "B", "C"))
        if prefix in facts and expected is not None and is_real:
            yield GoldenScan(f"{stem}/{prefix}", own, expected, bool(facts[prefix]["delta_softplus"]))


def _inside_a_module(stem: str, tensors: Arrays) -> GoldenScan:
    """(B, K, D, L) and K * D weights: K groups of D channels."""
    u = tensors["mid/scan_u"]
    flat = (u.shape[0], -1, u.shape[3])
    own = {
        "u": u.reshape(flat),
        "delta": tensors["mid/scan_delta_raw"].reshape(flat),
        "A": tensors["mid/scan_A"],
        "B": tensors["mid/scan_B"],
        "C": tensors["mid/scan_C"],
        "D": tensors["mid/scan_D"],
        "delta_bias": tensors["state/dt_projs_bias"].reshape(-1),
    }
    return GoldenScan(f"{stem}/mid", own, tensors["mid/scan_y"].reshape(flat))
