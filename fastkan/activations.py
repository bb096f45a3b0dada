"""Looking inside a network: what its nodes and edges give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels.arguments import FLAG, INDEX, checked, kind_of

from . import grid as grids
from .datasets import read_data
from .edges import edge_functions
from .functional import rows_of

if TYPE_CHECKING:
    from .network import KAN


class LayerTrace(NamedTuple):
    """What happened in one layer: see :func:`trace`.

    Args:
        nodes: ``[N, nodes]`` that enter.
        edges: ``[N, nodes, subnodes]``, every edge function's values, or None.
        subnodes: ``[N, subnodes]``, the sums.
        out: ``[N, nodes of the next layer]``.
    """

    nodes: Tensor
    edges: Tensor | None
    subnodes: Tensor
    out: Tensor


@checked(edges=FLAG)
@torch.no_grad()
def trace(model: KAN, x: Tensor | None = None, edges: bool = False) -> list[LayerTrace]:
    """What happens in each layer, without gradients.

    Args:
        x: ``[..., in_features]``; None takes the last batch that went through or, before any, points spread
            evenly over the first grids.
        edges: whether every edge function's values are wanted too, N x nodes x subnodes of each layer.

    Example:
        >>> steps = KAN(width=[2, 5, 1], seed=0).trace(torch.rand(10, 2), edges=True)
        >>> [step.edges.shape for step in steps]
        [torch.Size([10, 2, 5]), torch.Size([10, 5, 1])]
    """
    nodes = model.inputs(samples(model) if x is None else rows_of(x, model.in_features))
    found = []
    for layer in range(model.depth):
        values = edge_functions(model.layers[layer], model.symbolic[layer], nodes) if edges else None
        subnodes = model.subnodes_of(layer, nodes)
        after = model.nodes_of(layer, subnodes)
        found.append(LayerTrace(nodes, values, subnodes, after))
        nodes = after
    return found


@torch.no_grad()
def samples(model: KAN) -> Tensor:
    """The last batch that went through, or points spread evenly over the first grids, ``[N, in_features]``."""
    if model.sample is not None and len(model.sample):
        return model.sample.to(model.device, model.dtype)
    limits = grids.interior(model.layers[0].knots, model.layers[0].spline_order).double()
    unit = torch.quasirandom.SobolEngine(len(limits)).draw(1024, dtype=torch.float64).to(model.device)
    spread = torch.zeros(len(unit), model.in_features, dtype=model.dtype, device=model.device)
    low, high = limits[:, 0], limits[:, -1]
    spread[:, model.input_id] = (low + (high - low) * unit).to(model.dtype)
    return spread


def get_act(model: KAN, x: Any = None) -> list[LayerTrace]:
    """Send samples through, and keep them as the model's sample: a tensor, or a dataset with ``train_input``.

    Returns:
        What happens in each layer, with every edge's values.

    Raises:
        TypeError, ValueError: for something else; the model's sample has not changed then.
    """
    if isinstance(x, dict):
        if "train_input" not in x:
            raise ValueError(f"x must be a tensor, or a dataset with train_input, got one with {list(x)}")
        x = x["train_input"]
    found = trace(model, x, edges=True)
    if x is not None:
        model.sample = rows_of(x, model.in_features).detach()
    return found


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.no_grad()
def get_fun(model: KAN, l: int, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of an edge over the last batch, ``[N]`` each, by rising input.

    Raises:
        TypeError, ValueError: for an edge that is not there.
    """
    check_edge(model, l, i, j)
    step = trace(model, edges=True)[l]
    assert step.edges is not None
    x, order = step.nodes[:, i].sort()
    return x, step.edges[order, i, j]


@checked(l=INDEX, i=INDEX, j=INDEX, verbose=FLAG)
def get_range(model: KAN, l: int, i: int, j: int, verbose: bool = True) -> tuple[float, float, float, float]:
    """Least and greatest input and output of an edge over the last batch: ``(x_min, x_max, y_min, y_max)``.

    Raises:
        TypeError, ValueError: for an edge that is not there.
    """
    x, y = get_fun(model, l, i, j)
    ends = x.min().item(), x.max().item(), y.min().item(), y.max().item()
    if verbose:
        print("x range: [{:.2f}, {:.2f}]\ny range: [{:.2f}, {:.2f}]".format(*ends))
    return ends


@torch.no_grad()
def evaluate(model: KAN, dataset: dict[str, Tensor]) -> dict[str, float]:
    """Root mean squared error over ``test_input`` and ``test_label`` of a dataset, as ``{"test_loss": ...}``.

    Raises:
        TypeError, ValueError: for data that is not finite or doesn't fit the network.
    """
    if not isinstance(dataset, Mapping) or not {"test_input", "test_label"} <= set(dataset):
        got = list(dataset) if isinstance(dataset, Mapping) else kind_of(dataset)
        raise ValueError(f"dataset must be a dictionary with test_input and test_label, got {got}")
    data = read_data(
        (dataset["test_input"], dataset["test_label"]),
        in_features=model.in_features,
        out_features=model.width_in[-1],
        device=model.device,
        dtype=model.dtype,
    )
    return {"test_loss": (model(data.train_input) - data.train_label).square().mean().sqrt().item()}


@checked(l=INDEX, i=INDEX, j=INDEX)
def check_edge(model: KAN, l: int, i: int, j: int) -> None:
    """Raises a TypeError or ValueError if edge ``(l, i, j)`` is not there."""
    if l >= model.depth:
        raise ValueError(f"l must be below {model.depth}, the number of layers; got {l}")
    for name, value, count in (("i", i, model.width_in[l]), ("j", j, model.width_out[l + 1])):
        if value >= count:
            side = "inputs" if name == "i" else "outputs"
            raise ValueError(f"{name} must be below {count}, the {side} of layer {l}; got {value}")
