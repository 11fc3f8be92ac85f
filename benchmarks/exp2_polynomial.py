"""The coefficients of exp2_fraction in kernels/src/simd/vec_math.h, and their error.

    python benchmarks/exp2_polynomial.py

Finds the polynomial q of degree 4 for which 1 + f q(f) has the least relative error against 2^f on |f| <= 1/2 (a linear
programme over a dense grid: the discrete minimax), rounds it to float32, and prints coefficients and errors. Needs SciPy.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

DEGREE = 4


def minimax(points: int = 4001) -> np.ndarray:
    """Coefficients of q, lowest power first."""
    f = np.cos(np.linspace(0, np.pi, points)) / 2
    f = f[np.abs(f) > 1e-6]
    target = np.exp2(f)
    # |1 + f q(f) - 2^f| <= bound * 2^f, minimise the bound.
    powers = f[:, None] ** np.arange(1, DEGREE + 2) / target[:, None]
    wanted = (target - 1) / target
    ones = np.ones((len(f), 1))
    scale = 1e6  # the bound is about 1e-7: scaled, it is well within the solver's tolerance
    upper = np.vstack([np.hstack([powers * scale, -ones]), np.hstack([-powers * scale, -ones])])
    limit = np.concatenate([wanted, -wanted]) * scale
    cost = np.r_[np.zeros(DEGREE + 1), 1]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    bounds = [(None, None)] * (DEGREE + 2)
    solution = linprog(cost, A_ub=upper, b_ub=limit, bounds=bounds, method="highs", options=options)
    return np.asarray(solution.x[:-1])


def main() -> None:
    exact = minimax()
    rounded = exact.astype(np.float32)
    f = np.linspace(-0.5, 0.5, 1_000_001)
    for name, coefficients in (("float64", exact), ("float32", rounded.astype(np.float64))):
        value = 1 + f * np.polynomial.polynomial.polyval(f, coefficients)
        print(f"{name} coefficients: greatest relative error {np.max(np.abs(value / np.exp2(f) - 1)):.2e}")
    single = f.astype(np.float32)
    value32 = np.full_like(single, rounded[-1])
    for coefficient in rounded[-2::-1]:
        value32 = value32 * single + coefficient
    value32 = value32 * single + np.float32(1)
    ulp = np.abs(value32.astype(np.float64) - np.exp2(single.astype(np.float64))) / np.spacing(np.exp2(single))
    print(f"evaluated in float32 without fused multiply-add: {ulp.max():.2f} ulp at most")
    print("highest power first:", ", ".join(f"{c:.9g}f" for c in rounded[::-1]))


if __name__ == "__main__":
    main()
