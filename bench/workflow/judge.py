"""Comparison of a found formula with its target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .targets import Target

SAME = 1e-5  # of the target's standard deviation; another formula is further off
ALIKE = 5e-3  # with the same functions, the error that constants of two digits leave
SAMPLES = 2000


def error(target: Target, formula: Any, variables: list[Any]) -> float:
    """Root mean square of formula minus target at fresh points, over the target's standard deviation."""
    import sympy

    points = _points(target)
    with np.errstate(all="ignore"):
        found = sympy.lambdify(variables, formula, "numpy")(*points.T.numpy())
    wanted = target.function(points).flatten().numpy()
    apart = float(np.sqrt(np.mean(np.square(np.broadcast_to(found, wanted.shape) - wanted))) / wanted.std())
    return apart if math.isfinite(apart) else math.inf


def is_found(target: Target, formula: Any, apart: float, noise: float = 0.0) -> bool:
    """Whether a formula of this error is the target itself, with constants right to two digits.

    Args:
        noise: the noise of the labels relative to their standard deviation. Half of it may remain in the formula, whose
            constants cannot be exact then.
    """
    import sympy

    close = apart < max(ALIKE, noise / 2)
    return apart < SAME or (close and _functions(formula) == _functions(sympy.sympify(target.formula)))


def _functions(expression: Any) -> set[str]:
    """Functions and powers of variables in an expression; sine and cosine count as the same."""
    import sympy

    found = {type(each).__name__ for each in expression.atoms(sympy.Function)}
    powers = {each.exp for each in expression.atoms(sympy.Pow) if each.base.free_symbols and each.exp.is_number}
    return {"sin" if name == "cos" else name for name in found} | {f"^{sympy.nsimplify(power)}" for power in powers}


def _points(target: Target) -> torch.Tensor:
    generator = torch.Generator().manual_seed(12345)
    unit = torch.rand(SAMPLES, target.variables, generator=generator, dtype=torch.float64)
    ends = torch.tensor(target.ranges, dtype=torch.float64).reshape(-1, 2).expand(target.variables, 2)
    return ends[:, 0] + (ends[:, 1] - ends[:, 0]) * unit
