"""The formulas to find, and the recipes. Formulas and networks were written down before any was run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Recipe(NamedTuple):
    """Steps that find a formula: sparse training, pruning, training, a finer grid, training, formulas, training.

    Args:
        grid: G at first.
        sparse: arguments of the first fit.
        refine: G for a second training, or None for none.
    """

    grid: int
    sparse: dict[str, Any]
    refine: int | None


IN_ARTICLE = Recipe(5, {"opt": "LBFGS", "steps": 20, "lamb": 0.01, "lamb_entropy": 10.0}, None)
IN_NOTEBOOK = Recipe(3, {"opt": "LBFGS", "steps": 50, "lamb": 0.001}, 10)  # pykan's introductory one


class Target(NamedTuple):
    """A formula of some variables.

    Args:
        formula: for sympy, with variables ``x_1``, ``x_2``, ...
        function: of a tensor ``[N, variables]``.
        width, mult_arity: of the network.
        ranges: lower and upper end of each variable.
    """

    name: str
    formula: str
    function: Callable[[Tensor], Tensor]
    width: Sequence
    ranges: Sequence = (-1, 1)
    mult_arity: int = 2
    recipe: Recipe = IN_NOTEBOOK

    @property
    def variables(self) -> int:
        """Number of variables."""
        return self.width[0]


ARTICLE = Target(
    "article",
    "exp(sin(pi*x_1) + x_2**2)",
    lambda x: torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2),
    [2, 5, 1],
    recipe=IN_ARTICLE,
)

SUITE = (
    ARTICLE,
    Target(
        "sum",
        "sin(pi*x_1) + x_2**2",
        lambda x: torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2,
        [2, 3, 1],
    ),
    Target("product", "x_1*x_2", lambda x: x[:, [0]] * x[:, [1]], [2, [2, 1], 1]),
    Target(
        "quotient",
        "x_1/(1 + x_2)",
        lambda x: x[:, [0]] / (1 + x[:, [1]]),
        [2, [2, 1], 1],
        ranges=[[-1, 1], [0, 2]],
    ),
    Target(
        "distance",
        "sqrt(x_1**2 + x_2**2)",
        lambda x: (x[:, [0]] ** 2 + x[:, [1]] ** 2).sqrt(),
        [2, 3, 1],
        ranges=[[0.2, 1.5], [0.2, 1.5]],
    ),
    Target(
        "gaussian",
        "exp(-x_1**2 - x_2**2)",
        lambda x: torch.exp(-(x[:, [0]] ** 2) - x[:, [1]] ** 2),
        [2, 3, 1],
    ),
    Target(
        "Lorentzian",
        "1/(1 + x_1**2 + x_2**2)",
        lambda x: 1 / (1 + x[:, [0]] ** 2 + x[:, [1]] ** 2),
        [2, 3, 1],
    ),
    Target("wave", "x_1*sin(pi*x_2)", lambda x: x[:, [0]] * torch.sin(math.pi * x[:, [1]]), [2, [2, 1], 1]),
    Target(
        "logarithm",
        "log(2 + x_1 + x_2**2)",
        lambda x: torch.log(2 + x[:, [0]] + x[:, [1]] ** 2),
        [2, 3, 1],
    ),
    Target("volume", "x_1*x_2*x_3", lambda x: x.prod(1, keepdim=True), [3, [2, 1], 1], mult_arity=3),
    Target("saturation", "tanh(x_1 + 2*x_2)", lambda x: torch.tanh(x[:, [0]] + 2 * x[:, [1]]), [2, 3, 1]),
    Target(
        "two products",
        "x_1*x_2 + x_3*x_4",
        lambda x: x[:, [0]] * x[:, [1]] + x[:, [2]] * x[:, [3]],
        [4, [2, 2], 1],
    ),
)
