"""Formulas to search for, and their samples."""

from __future__ import annotations

import math

import torch

from fastkan.symbolic import SYMBOLIC_LIB

PI = math.pi

# for each name the ends (p, q) of the interval that u from -1 to 1 is mapped to; then c and d
CASES: dict[str, list[tuple[float, float, float, float]]] = {
    "x": [(-1, 1, 3, 0.5)],
    "x^2": [(-1, 1, 2, 1), (-0.3, 2, -1.5, 0), (1, 4, 0.7, -2)],
    "x^3": [(-1, 1, 2, 1), (-2, 0.5, 1, 0), (0.5, 2, -1, 3)],
    "x^4": [(-1, 1, 2, 1), (-2, 0.5, 1, 0), (0.5, 2, -1, 3)],
    "x^5": [(-1, 1, 2, 1), (-2, 0.5, 1, 0), (0.5, 2, -1, 3)],
    "1/x": [(0.1, 2, 2, 1), (3, 0.5, -1, 0)],
    "1/x^2": [(0.1, 2, 2, 1), (3, 0.5, -1, 0)],
    "1/x^3": [(0.2, 2, 2, 1), (3, 0.5, -1, 0)],
    "1/x^4": [(0.2, 2, 2, 1), (3, 0.5, -1, 0)],
    "1/x^5": [(0.3, 2, 2, 1), (3, 0.5, -1, 0)],
    "sqrt": [(0, 2, 2, 1), (0.001, 1, -1, 0), (3, 0.5, 1, 1)],
    "x^1.5": [(0, 2, 2, 1), (3, 0.5, 1, 1)],
    "1/sqrt(x)": [(0.01, 2, 2, 1), (3, 0.5, 1, 1)],
    "exp": [(-1, 1, 2, 1), (2, -2, -1, 0), (0, 0.5, 1, 0)],
    "log": [(0.01, 2, 2, 1), (3, 0.5, 1, 1)],
    "abs": [(-1, 2, 2, 1), (-3, 0.5, 1, 0)],
    "sin": [(-PI, PI, 1, 0), (-1, 2, 2, 1), (0, 17, -1, 0), (-40, 38, 1, 1)],
    "cos": [(-PI, PI, 1, 0), (-1, 2, 2, 1), (0.3, 17, -1, 0)],
    "tan": [(-1, 1.4, 2, 1), (-0.3, 1.2, 1, 0)],
    "tanh": [(-2, 3, 2, 1), (-9, 20, 1, 0), (-0.5, 2.5, -1, 0)],
    "sgn": [(-1, 2, 2, 1), (-3, 0.5, 1, 0)],
    "arcsin": [(-1, 1, 2, 1), (-0.3, 0.99, 1, 0)],
    "arccos": [(-1, 1, 2, 1), (-0.3, 0.99, 1, 0)],
    "arctan": [(-2, 5, 2, 1), (-20, 13, 1, 0)],
    "arctanh": [(-0.99, 0.99, 2, 1), (-0.3, 0.95, 1, 0)],
    "gaussian": [(-2, 2, 2, 1), (-9, 3, 1, 0), (-0.5, 2, 1, 0)],
    "cosh": [(-2, 2, 2, 1), (-1, 3, 1, 0)],
    "sinh": [(-2, 2, 2, 1), (-1, 3, 1, 0), (-5, 0.5, 1, 0)],
    "sigmoid": [(-2, 4, 2, 1), (-9, 20, 1, 0)],
}
# widths and starts of x's range
RANGES = [(0.2, 0.4), (2.0, -1.0), (20.0, 3.0)]


def samples(count: int = 1000) -> torch.Tensor:
    """Random numbers from 0 to 1 that include both ends."""
    t = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t[:2] = torch.tensor([0.0, 1.0])
    return t


def data(name: str, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples ``x, y [N, E]`` of all cases of a function on all ranges."""
    t, xs, ys = samples(), [], []
    generator = torch.Generator().manual_seed(4)
    for p, q, c, d in CASES[name]:
        for width, start in RANGES:
            z = torch.lerp(torch.tensor(p, dtype=t.dtype), torch.tensor(q, dtype=t.dtype), t)
            y = c * SYMBOLIC_LIB[name].fun(z) + d
            xs.append(start + width * t)
            ys.append(y + noise * y.std() * torch.randn(len(t), dtype=t.dtype, generator=generator))
    return torch.stack(xs, 1), torch.stack(ys, 1)


def values(name: str, affine: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of the fits ``[E, 4]`` at ``x [N, E]``."""
    a, b, c, d = affine.unbind(1)
    return c * SYMBOLIC_LIB[name].fun(a * x + b) + d


def r_squared(got: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1 - (got - y).square().sum(0) / (y - y.mean(0)).square().sum(0)


# the simplest form of c f(a x + b) + d
FORMS = [
    ("x", (1, 0, 3, 0.5)), ("x^2", (1, 0.25, 3, -1)), ("x^3", (1, -0.5, 2, 1)), ("x^4", (1, 0.3, -2, 1)),
    ("x^5", (1, 0.3, -2, 1)), ("1/x", (1, 1.5, 2, 1)), ("1/x", (1, -1.25, 2, 1)), ("1/x^2", (1, 1.5, 2, 1)),
    ("1/x^3", (1, -1.5, 2, 1)), ("1/x^4", (1, 1.5, 2, 1)), ("1/x^5", (1, 1.5, -2, 1)), ("sqrt", (1, 1.1, 2, 1)),
    ("sqrt", (-1, 1.1, 2, 1)), ("x^0.5", (1, 1.1, 2, 1)), ("x^1.5", (-1, 1.1, 2, 1)), ("1/sqrt(x)", (1, 1.1, 2, 1)),
    ("1/x^0.5", (-1, 1.1, 2, 1)), ("exp", (2, 0.5, 1, 3)), ("exp", (-3, 0.5, -1, 0)), ("log", (1, 1.2, 2, 1)),
    ("log", (-1, 1.2, 2, 1)), ("abs", (1, 0.25, 2, -1)), ("sin", (PI, 0, 1, 0)), ("sin", (3, 0.4, -2, 1)),
    ("sin", (9, -1.4, 2, 1)), ("cos", (3, 0.4, -2, 1)), ("cos", (9, -1.4, 2, 1)), ("tan", (1.2, 0.2, 2, 1)),
    ("tanh", (3, 0.5, 2, 1)), ("arcsin", (0.8, 0.1, 2, 1)), ("arccos", (0.8, 0.1, 2, 1)), ("arctan", (3, 0.5, 2, 1)),
    ("arctanh", (0.8, 0.1, 2, 1)), ("gaussian", (2, 0.5, 3, 1)), ("cosh", (2, 0.5, 3, 1)), ("sinh", (2, 0.5, 3, 1)),
    ("sigmoid", (5, 0.5, 3, 1)),
]  # fmt: skip
