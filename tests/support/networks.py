"""Networks to test on, and their values by float64 NumPy, scipy and formulas written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import oracle
import torch
from cases import make_knots
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastkan.kan.model import KAN

Array = np.ndarray
D = torch.float64

FUNCTIONS = {
    "x": lambda z: z,
    "x^2": np.square,
    "sin": np.sin,
    "exp": np.exp,
    "tanh": np.tanh,
    "1/x": lambda z: 1 / z,
    "sqrt": np.sqrt,
}
MIXED: dict[str, Any] = {"width": [3, [2, 3], [1, 1], 2], "mult_arity": [[], [2, 3, 4], [2], []]}


def network(
    width: Sequence = (2, 5, 1),
    knots: str = "shared",
    affine: bool = False,
    formulas: Sequence[tuple[int, int, int, str]] = (),
    off: Sequence[tuple[int, int, int]] = (),
    dtype: torch.dtype = D,
    seed: int = 0,
    **options: Any,
) -> KAN:
    """A network whose parameters are all far from 0 and different.

    Args:
        knots: a kind of ``cases.KNOTS``, or ``"own"`` to leave them as they are.
        affine: whether nodes and subnodes have scales and biases.
        formulas: ``(l, i, j, name)`` of edges that are formulas; the first of them are splines as well.
        off: ``(l, i, j)`` of edges that are off.
    """
    model = KAN(width=list(width), seed=seed, dtype=dtype, **{"grid": 6, **options})
    draw = torch.Generator().manual_seed(seed + 100)

    def randn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw, dtype=D).to(like.dtype)

    with torch.no_grad():
        for layer in model.layers:
            for parameter in layer.parameters():
                parameter.copy_(randn(parameter) / layer.in_features**0.5)
            layer.spline_scale.add_(1.0)
            if knots != "own":
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    made = make_knots(knots, layer.in_features, layer.grid_size, layer.spline_order, dtype)
                layer.set_knots(made)
        for l in range(model.depth):
            mask = torch.ones(model.width_in[l], model.width_out[l + 1])
            for place, (_, i, j, name) in enumerate(edge for edge in formulas if edge[0] == l):
                row = randn(torch.empty(4, dtype=D))
                model.symbolic[l].fix(i, j, name, row / 2 + torch.tensor([1.0, 0.0, 1.0, 0.0]))
                mask[i, j] = float(place == 0)
            for _, i, j in (edge for edge in off if edge[0] == l):
                mask[i, j] = 0
            if not mask.all():
                model.layers[l].set_mask(mask)
        if affine:
            for part, middle in (
                (model.node_scale, 1), (model.node_bias, 0), (model.subnode_scale, 1), (model.subnode_bias, 0),
            ):  # fmt: skip
                for parameter in part:
                    parameter.copy_(middle + randn(parameter) / 3)
    return model


def mixed(**options: Any) -> KAN:
    """A network with products of 2, 3 and 4 factors, formulas, edges that are off, and affine maps."""
    made: dict[str, Any] = {
        "affine": True,
        "formulas": [(0, 0, 0, "sin"), (0, 2, 5, "exp"), (1, 1, 2, "tanh"), (1, 4, 0, "x^2"), (2, 0, 1, "sin")],
        "off": [(0, 1, 1), (0, 0, 7), (1, 2, 1)],
        "base_fun": "silu",
    }
    return network(**{**MIXED, **made, **options})


class Step(NamedTuple):
    """The values of one layer, in NumPy."""

    nodes: Array  # [N, in]
    edges: Array  # [N, in, subnodes]
    subnodes: Array  # [N, subnodes], before the affine map
    out: Array  # [N, nodes]


def walk(model: KAN, x: Tensor | Array) -> list[Step]:
    """Return the values of every layer, by NumPy alone."""
    nodes = np.asarray(x, dtype=float)[:, model.input_id.numpy()]
    steps = []
    for l in range(model.depth):
        edges = edge_values(model, l, nodes)
        subnodes = edges.sum(1)
        moved = _array(model.subnode_scale[l]) * subnodes + _array(model.subnode_bias[l])
        sums, arities = model.width[l + 1][0], model.mult_arity[l + 1]
        columns = [moved[:, n] for n in range(sums)]
        first = sums
        for arity in arities:
            columns.append(np.prod(moved[:, first : first + arity], axis=1))
            first += arity
        out = _array(model.node_scale[l]) * np.stack(columns, 1) + _array(model.node_bias[l])
        steps.append(Step(nodes, edges, subnodes, out))
        nodes = out
    return steps


def edge_values(model: KAN, l: int, nodes: Array) -> Array:
    """Values of every edge function of a layer, ``[N, in, subnodes]``."""
    layer, symbolic = model.layers[l], model.symbolic[l]
    psi = oracle.splines(nodes, _array(layer.knots), layer.spline_order)
    weight = _array(layer.spline_weight) * _array(layer.spline_scale)
    values = np.einsum("npi,pio->nio", psi, weight)
    if layer.base_weight is not None:
        values += oracle.base_function(nodes, layer.base)[:, :, None] * _array(layer.base_weight)
    if layer.mask is not None:
        values *= _array(layer.mask)
    for edge, (a, b, c, d) in zip(symbolic.edges, _array(symbolic.affine)):
        values[:, edge.i, edge.j] += c * FUNCTIONS[edge.name](a * nodes[:, edge.i] + b) + d
    return values


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def points(model: KAN, rows: int = 60, seed: int = 0, wide: float = 1.3) -> Tensor:
    """Random inputs ``[rows, in_features]`` in the grids and around them."""
    draw = torch.Generator().manual_seed(seed)
    return (wide * (2 * torch.rand(rows, model.in_features, generator=draw, dtype=D) - 1)).to(model.dtype)


def same(got: Tensor, expected: Any, digits: float = 1e-11) -> None:
    """Assert equality up to float64's rounding, relative to the largest value."""
    expected = torch.as_tensor(expected, dtype=got.dtype).detach()
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got.detach(), expected, rtol=0, atol=digits * max(size, 1e-300))


def parameters_of(model: KAN) -> dict[str, Tensor]:
    """A copy of everything in a model's state."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }


def unchanged(model: KAN, before: dict[str, Tensor]) -> None:
    """Assert that a model's state equals ``before`` bit by bit."""
    after = parameters_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(after[name], value), f"{name} has changed"
        else:
            assert after[name] == value, f"{name} has changed"


def nothing_shared(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Assert that two modules share no storage."""

    def storages(module: torch.nn.Module) -> set[int]:
        tensors = [*module.parameters(), *module.buffers()]
        return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}

    assert not storages(one) & storages(other)


class Passive(TorchDispatchMode):
    """A dispatch mode that runs every operation as it is."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))
