"""Looking inside a network: what its nodes and edges give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import FLAG, INDEX, check_finite, checked, warn

from ..functional import rows_of
from ..layers import grid as grids
from ..layers.arrays import inputs_of, tensor_of
from ..layers.edge_functions import edge_functions

if TYPE_CHECKING:
    from .core import Network


def rows_for(model: Network, x: Any = None, dataset: Any = None, *, least: int = 2, decides: bool = True) -> Tensor:
    """The rows that a function of a network goes by: those given, else those of the last :meth:`KAN.fit` or
    :meth:`KAN.get_act`, else points spread evenly over the first grids.

    Args:
        x: ``[..., in_features]``, a tensor or an array.
        dataset: instead of x, a dataset as :meth:`KAN.fit` takes it, or a dictionary with ``train_input`` alone; of a
            loader its first batch.
        least: how many different rows it takes.
        decides: whether the network, or a choice, depends on them. Then too few rows, or NaN among them, are refused,
            and points spread over the grids are warned of.

    Returns:
        ``[N, in_features]``, in the network's dtype and on its device.

    Raises:
        TypeError, ValueError: for rows of another shape or, where they decide, of fewer than ``least`` different ones
            or with NaN or infinities.

    Example:
        >>> from fastkan.network.trace import rows_for
        >>> rows_for(KAN(width=[2, 1]), [[0.0, 1.0], [1.0, 0.0]]).shape
        torch.Size([2, 2])
    """
    if x is not None and dataset is not None:
        raise ValueError("x and dataset both say which rows to use: give one of them")
    name = "x"
    if x is not None:
        rows = rows_of(_read_rows("x", x), model.in_features)
    elif isinstance(dataset, Mapping):
        name = "train_input"
        if name not in dataset:
            raise ValueError(f"dataset must have train_input, got only {list(dataset)}")
        rows = rows_of(_read_rows(name, dataset[name]), model.in_features)
    elif dataset is not None:
        rows = rows_of(_read_rows("x", inputs_of(dataset)), model.in_features)
    elif model.sample is not None:
        name, rows = "model.sample", model.sample
    else:
        if decides:
            warn(
                "there has been no fit, so points spread evenly over the first grids stand for data: give rows as x=, "
                "or call get_act(x) before"
            )
        return grid_points(model)
    rows = rows.detach().to(model.device, model.dtype)
    if decides:
        read = model.inputs(rows)
        check_finite(name, read)
        _check_different(name, read, least)
    return rows


def _read_rows(name: str, value: Any) -> Tensor:
    """Rows as people have them, a tensor, an array or lists of numbers, as a floating-point tensor.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(value, (list, tuple)):
        try:
            value = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must be a torch.Tensor, an array or rows of numbers, got {value!r:.60}") from None
    rows = tensor_of(name, value)
    return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())


def _check_different(name: str, rows: Tensor, least: int) -> None:
    """Whether there are ``least`` different rows; most often the first ones tell."""
    if not len(rows):
        raise ValueError(f"{name} must have at least one sample, got none")
    if len(rows) >= least and (least <= 1 or len(rows[: 8 * least].unique(dim=0)) >= least):
        return
    count = len(rows.unique(dim=0))
    if count < least:
        raise ValueError(f"{name} must have at least {least} different rows, got {count} among {len(rows)}")


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
def trace(model: Network, x: Tensor | None = None, edges: bool = False) -> list[LayerTrace]:
    """What happens in each layer, without gradients.

    Args:
        x: ``[..., in_features]``; None takes the rows of the last fit or, before any, points spread evenly over the
            first grids.
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
def samples(model: Network) -> Tensor:
    """The rows of the last :meth:`fit` or :meth:`get_act`, or points spread evenly over the first grids,
    ``[N, in_features]``."""
    return rows_for(model, decides=False)


def grid_points(model: Network) -> Tensor:
    limits = grids.interior(model.layers[0].knots, model.layers[0].spline_order).double()
    unit = torch.quasirandom.SobolEngine(len(limits)).draw(1024, dtype=torch.float64).to(model.device)
    spread = torch.zeros(len(unit), model.in_features, dtype=model.dtype, device=model.device)
    low, high = limits[:, 0], limits[:, -1]
    spread[:, model.input_id] = (low + (high - low) * unit).to(model.dtype)
    return spread


def get_act(model: Network, x: Any = None) -> list[LayerTrace]:
    """Send rows through, and keep copies of them (10,000 at most) as the model's sample.

    After a training loop of one's own this says which rows :meth:`auto_symbolic`, :meth:`prune` and
    :meth:`attribute` go by.

    Args:
        x: ``[..., in_features]``, a tensor or an array, or a dataset with ``train_input``; None takes the rows of the
            last fit.

    Returns:
        What happens in each layer, with every edge's values.

    Raises:
        TypeError, ValueError: for rows of another shape, or none.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> [step.edges.shape for step in model.get_act(torch.rand(10, 2))]
        [torch.Size([10, 2, 1])]
        >>> model.sample.shape
        torch.Size([10, 2])
    """
    if x is None:
        return trace(model, edges=True)
    if isinstance(x, Mapping) and "train_input" not in x:
        raise ValueError(f"x must have train_input as a dataset, got only {list(x)}")
    given = {"dataset": x} if isinstance(x, Mapping) else {"x": x}
    rows = rows_for(model, **given, decides=False)
    if not len(rows):
        raise ValueError("x must have at least one row, got none")
    model.sample = rows
    return trace(model, rows, edges=True)


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.no_grad()
def get_fun(model: Network, l: int, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of an edge over the rows of the last fit, ``[N]`` each, by rising input.

    Raises:
        TypeError, ValueError: for an edge that is not there.
    """
    check_edge(model, l, i, j)
    step = trace(model, edges=True)[l]
    assert step.edges is not None
    x, order = step.nodes[:, i].sort()
    return x, step.edges[order, i, j]


@checked(l=INDEX, i=INDEX, j=INDEX, verbose=FLAG)
def get_range(model: Network, l: int, i: int, j: int, verbose: bool = True) -> tuple[float, float, float, float]:
    """Least and greatest input and output of an edge over the rows of the last fit:
    ``(x_min, x_max, y_min, y_max)``.

    Raises:
        TypeError, ValueError: for an edge that is not there.
    """
    x, y = get_fun(model, l, i, j)
    ends = x.min().item(), x.max().item(), y.min().item(), y.max().item()
    if verbose:
        print("x range: [{:.2f}, {:.2f}]\ny range: [{:.2f}, {:.2f}]".format(*ends))
    return ends


@checked(l=INDEX, i=INDEX, j=INDEX)
def check_edge(model: Network, l: int, i: int, j: int) -> None:
    """Raises a TypeError or ValueError if edge ``(l, i, j)`` is not there."""
    if l >= model.depth:
        raise ValueError(f"l must be below {model.depth}, the number of layers; got {l}")
    for name, value, count in (("i", i, model.width_in[l]), ("j", j, model.width_out[l + 1])):
        if value >= count:
            side = "inputs" if name == "i" else "outputs"
            raise ValueError(f"{name} must be below {count}, the {side} of layer {l}; got {value}")
