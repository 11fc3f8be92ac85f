"""The polynomials of kernels/src/simd/math.inl, and their error.

    python benchmarks/kernel_polynomials.py

Each has the form 1 + x q(x), so that it is exact at 0, and the least relative error against its function on its interval
(a linear programme over a dense grid: the discrete minimax). Prints the coefficients as float32, highest power first, and
the greatest relative error of the polynomial that they make. Needs SciPy.

    2^f on |f| <= 1/2           degree 5, where there is no table
    2^f on |f| <= 1/16          degree 3, beside a table of eight roots
    log(1 + z) / z on [0, 1]    degree 8, of softplus
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

POINTS = 4001


@dataclass(frozen=True)
class Target:
    """What is to be approximated: ``function`` (1 at 0) on ``low`` .. ``high`` by a polynomial of ``degree``."""

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float
    degree: int


TARGETS = (
    Target("2^f, |f| <= 1/2", np.exp2, -1 / 2, 1 / 2, 5),
    Target("2^f, |f| <= 1/16", np.exp2, -1 / 16, 1 / 16, 3),
    Target("log(1 + z) / z, 0 <= z <= 1", lambda z: np.log1p(z) / z, 0.0, 1.0, 8),
)


def minimax(target: Target) -> np.ndarray:
    """Coefficients of q, lowest power first."""
    middle, radius = (target.low + target.high) / 2, (target.high - target.low) / 2
    x = middle + radius * np.cos(np.linspace(0, np.pi, POINTS))
    x = x[np.abs(x) > 1e-6 * radius]
    wanted = target.function(x)
    # |1 + x q(x) - f(x)| <= bound * f(x), minimise the bound. Powers of x / high, and a bound of about 1, keep the
    # programme well within the solver's tolerance.
    sizes = target.high ** np.arange(1, target.degree + 1)
    powers = x[:, None] ** np.arange(1, target.degree + 1) / sizes / wanted[:, None]
    rest, ones, scale = (wanted - 1) / wanted, np.ones((len(x), 1)), 1e8
    upper = np.vstack([np.hstack([powers * scale, -ones]), np.hstack([-powers * scale, -ones])])
    limit = np.concatenate([rest, -rest]) * scale
    cost = np.r_[np.zeros(target.degree), 1]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    bounds = [(None, None)] * (target.degree + 1)
    solution = linprog(cost, A_ub=upper, b_ub=limit, bounds=bounds, method="highs", options=options)
    return np.asarray(solution.x[:-1]) / sizes


def main() -> None:
    for target in TARGETS:
        single = minimax(target).astype(np.float32)
        x = np.linspace(target.low, target.high, 1_000_001)
        x = x[x != 0]
        value = 1 + x * np.polynomial.polynomial.polyval(x, single.astype(np.float64))
        error = np.max(np.abs(value / target.function(x) - 1))
        print(f"{target.name}, degree {target.degree}: greatest relative error {error:.2e}")
        print("  " + ", ".join(f"{coefficient:.9g}f" for coefficient in single[::-1]) + ", 1.0f")


if __name__ == "__main__":
    main()
