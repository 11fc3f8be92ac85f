"""Random inputs in NumPy, and the native backward pass on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import native
from edgemamba.runtime.operator import INPUT_NAMES

Arrays = dict[str, NDArray[Any]]


def random_inputs(
    rng: np.random.Generator,
    *,
    batch: int = 2,
    positions: int = 12,
    directions: int = 2,
    channels: int = 9,
    states: int = 4,
    steps: int | None = None,
    shared_u: bool = True,
    dtype: type[np.floating[Any]] = np.float32,
) -> Arrays:
    """Inputs of the operator with values of the size that a model has; every direction visits positions at random."""
    parameter = np.float64 if dtype == np.float64 else np.float32
    steps = positions if steps is None else steps

    def normal(*shape: int) -> NDArray[np.float64]:
        return rng.standard_normal(shape)

    return {
        "u": normal(batch, positions, 1 if shared_u else directions, channels).astype(dtype),
        "delta": (normal(batch, positions, directions, channels) - 1).astype(dtype),
        "A": -np.exp(normal(directions, channels, states)).astype(parameter),
        "B": normal(batch, positions, directions, states).astype(dtype),
        "C": normal(batch, positions, directions, states).astype(dtype),
        "D": normal(directions, channels).astype(parameter),
        "delta_bias": (0.3 * normal(directions, channels)).astype(parameter),
        "order": np.stack([rng.permutation(positions)[:steps] for _ in range(directions)]).astype(np.int32),
    }


def native_backward(
    inputs: Arrays, dy: NDArray[Any], delta_softplus: bool = True, threads: int = 0
) -> dict[str, NDArray[Any]]:
    """The seven gradients by name; the memory handed in is NaN, so that what is not written shows."""
    gradients = {name: np.full_like(inputs[name], np.nan) for name in INPUT_NAMES[:-1]}
    native.scan_backward(
        [native.view_of(inputs[name], name) for name in INPUT_NAMES],
        delta_softplus,
        native.view_of(dy, "dy"),
        [native.view_of(gradient, name) for name, gradient in gradients.items()],
        threads,
    )
    return gradients
