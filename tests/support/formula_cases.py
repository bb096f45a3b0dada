"""Random networks, and the values of their formulas."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import sympy
import torch
from scipy import special

from fastkan import KAN, SYMBOLIC_LIB

NAMES = sorted(SYMBOLIC_LIB)
ROWS = 64


def affine_for(name: str, nodes: torch.Tensor, choose: random.Random) -> list[float]:
    """Return a, b, c, d with which a x + b lies well inside the function's domain for these values x."""
    branch = choose.choice(SYMBOLIC_LIB[name].branches())
    low = branch.low if math.isfinite(branch.low) else min(branch.high - 3, -1.5)
    high = branch.high if math.isfinite(branch.high) else max(branch.low + 3, 1.5)
    low, high = low + 0.2 * (high - low), high - 0.2 * (high - low)
    least, most = nodes.min().item(), nodes.max().item()
    a = (high - low) / max(most - least, 0.1) * choose.choice([0.5, 1])
    a *= choose.choice([1, -1])
    b = (low + high) / 2 + 0.05 * (high - low) - a * (least + most) / 2  # keeps a constant away from the jump of sgn
    return [a, b, choose.choice([1, -1]) * choose.uniform(0.3, 1.5), choose.uniform(-1, 1)]


def randomized(model: KAN, x: torch.Tensor, choose: random.Random, formula: float, spline: float) -> KAN:
    """Set random affine maps and parameters, and make each edge a formula, a spline, both or none."""
    with torch.no_grad():
        for part in (model.subnode_scale, model.subnode_bias, model.node_scale, model.node_bias):
            for parameter in part:
                parameter.copy_(torch.tensor([choose.choice([0, 1, choose.uniform(-2, 2)]) for _ in parameter]))
        for layer in model.layers:
            layer.spline_weight.normal_()
            layer.base_weight.normal_()
            layer.spline_scale.normal_()
    nodes = model._select_inputs(x)
    for layer, symbolic in enumerate(model.symbolic):
        mask = torch.zeros(model.width_in[layer], model.width_out[layer + 1])
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                if choose.random() < formula:
                    name = choose.choice(NAMES)
                    symbolic.fix(i, j, name, affine_for(name, nodes[:, i], choose))
                mask[i, j] = choose.random() < spline
        model.layers[layer].set_mask(mask)
        nodes = model._node_values(layer, model._subnode_values(layer, nodes)).detach()
    return model


def network(choose: random.Random, width: list[Any], columns: int) -> KAN:
    arities = [
        [choose.choice([2, 3, 4]) for _ in range(entry[1])] if isinstance(entry, list) else [] for entry in width
    ]
    model = KAN(width=width, mult_arity=arities, grid=choose.choice([1, 3, 5]), k=choose.choice([1, 2, 3]), seed=0,
                dtype=torch.float64)  # fmt: skip
    model.in_features = columns
    model.input_id = torch.tensor(choose.sample(range(columns), width[0]))
    return model


WIDTHS = [[1, 1], [2, 3, 1], [3, [1, 2], 2], [2, [0, 3], [2, 1], 2], [2, [2, 1], [0, 2]]]


def of_formulas(formulas: list[Any], variables: list[Any], x: torch.Tensor) -> torch.Tensor:
    """Values of formulas by sympy's ``lambdify`` for NumPy, ``[N, out]``."""
    function = sympy.lambdify(variables, formulas, [{"erf": special.erf}, "numpy"])
    with np.errstate(all="ignore"):
        columns = function(*x.numpy().T)
    return torch.stack([torch.as_tensor(np.broadcast_to(column, len(x)).copy()) for column in columns], 1)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert equality to 1e-9 of each output's largest value, wherever the expected value is finite."""
    finite = expected.isfinite()
    assert finite.double().mean() > 0.9
    size = torch.where(finite, expected, 0).abs().amax(0).clamp(min=1e-3).expand_as(expected)
    assert ((found - expected).abs() / size)[finite].max() < 1e-9


def fixed(width: list[Any], *edges: tuple[Any, ...], **options: Any) -> KAN:
    """A network whose only edges are these formulas ``(l, i, j, name, affine)``."""
    model = KAN(width=width, **{"dtype": torch.float64, **options})
    for layer in model.layers:
        layer.set_mask(torch.zeros_like(layer.spline_weight[0]))
    for layer, i, j, name, *affine in edges:
        model.symbolic[layer].fix(i, j, name, *affine)
    return model
