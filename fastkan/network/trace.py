"""Inspection of a network: the choice of rows, the values of nodes and edges on the rows, and the edges that are on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import FLAG, INDEX, check_finite, checked, repr_with_shapes, warn

from ..functional import rows_of
from ..layers import grid as grids
from ..layers.distributed import check_one_process
from ..layers.edge_functions import edge_functions, mask_of
from .samples import as_tensor, dataset_inputs

if TYPE_CHECKING:
    from .core import Network

# Maximum number of values of one layer of nodes that ``predict`` computes at a time.
PREDICTED_VALUES = 1 << 20

# -- choice of rows -------------------------------------------------------------------------------


def rows_for(
    model: Network,
    x: Any = None,
    dataset: Any = None,
    *,
    min_rows: int = 2,
    strict: bool = True,
    changing: str | None = None,
) -> Tensor:
    """Choose the rows on which a method of a network evaluates the network.

    The rows are given as ``x`` or ``dataset``. If neither is given, the rows of the last :meth:`KAN.fit` or
    :meth:`KAN.get_act` are used or, if there are none, points spread evenly over the grids of the first layer.

    Args:
        x: rows ``[..., in_features]``: a tensor, an array or lists of numbers.
        dataset: dataset in a form that :meth:`KAN.fit` accepts, or a dictionary with ``train_input`` alone, whose
            inputs are used as rows instead of ``x``. Batches of a loader are read until there are 10,000 rows.
        min_rows: minimum number of different rows, checked if ``strict`` is True.
        strict: whether the caller uses the rows to change the network or to make a choice, and not only to display
            values. If True, an error is raised for too few rows, NaN or infinities, and a warning is given if points
            spread over the grids are used.
        changing: name of the calling method if it changes the network, or makes a new one, by what it computes from the
            rows. Several processes, which have different rows, would then get different networks.

    Returns:
        The rows ``[N, in_features]``, in the dtype and on the device of the network.

    Raises:
        TypeError, ValueError: if the rows have the wrong shape or type. If ``strict`` is True, an error is also raised
            if the rows contain NaN or infinities, or if there are fewer than ``min_rows`` different rows.
        RuntimeError: if ``changing`` is given, and ``torch.distributed`` runs several processes or the parameters are
            distributed over processes.
    """
    check_has_values(model)
    if changing is not None:
        check_not_sharded(model, changing)
    if x is not None and dataset is not None:
        raise ValueError("x and dataset both say which rows to use: give one of them")
    name = "x"
    if isinstance(dataset, Mapping):
        name = "train_input"
        if name not in dataset:
            raise ValueError(f"dataset must have train_input, got only {list(dataset)}")
        x = dataset[name]
    elif dataset is not None:
        x = dataset_inputs(dataset)
    if x is not None or dataset is not None:
        rows = rows_of(_read_rows(name, x), model.in_features)
    elif model.sample is not None:
        name, rows = "model.sample", model.sample
    else:
        if strict:
            warn(
                "there has been no fit, so points spread evenly over the first grids stand for data: give rows as x=, "
                "or call get_act(x) before"
            )
        return grid_points(model)  # These points are the same in all processes.
    if changing is not None:
        check_one_process(
            changing,
            "Call it in one process, before torch.distributed is initialised, and load the result on every rank (save "
            "and load), or choose the edges, nodes, inputs or parameters yourself by other arguments",
        )
    rows = rows.detach().to(model.device, model.dtype)
    if strict:
        read = model._select_inputs(rows)
        check_finite(name, read)
        _check_different(name, read, min_rows)
    return rows


@torch.no_grad()
def default_rows(model: Network) -> Tensor:
    """Return the rows ``[N, in_features]`` that :func:`rows_for` chooses if no rows are given. The rows are not
    checked."""
    return rows_for(model, strict=False)


def grid_points(model: Network) -> Tensor:
    """Return points ``[1024, in_features]`` spread evenly over the grids of the first layer. Inputs that the network
    does not read are 0."""
    limits = grids.interior(model.layers[0].knots, model.layers[0].spline_order).double()
    unit = torch.quasirandom.SobolEngine(len(limits)).draw(1024, dtype=torch.float64).to(model.device)
    points = torch.zeros(len(unit), model.in_features, dtype=model.dtype, device=model.device)
    low, high = limits[:, 0], limits[:, -1]
    points[:, model.input_id] = (low + (high - low) * unit).to(model.dtype)
    return points


def _read_rows(name: str, value: Any) -> Tensor:
    """Convert rows, given as a tensor, an array or lists of numbers, to a floating-point tensor."""
    if isinstance(value, (list, tuple)):
        try:
            value = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must be a torch.Tensor, an array or rows of numbers, got {value!r:.60}") from None
    rows = as_tensor(name, value)
    return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())


def _check_different(name: str, rows: Tensor, min_rows: int) -> None:
    """Raise a ValueError if there are fewer than ``min_rows`` different rows."""
    if min_rows == 0:
        return
    if not len(rows):
        raise ValueError(f"{name} must have at least one sample, got none")
    if len(rows[: 8 * min_rows].unique(dim=0)) >= min_rows:  # the first rows are usually sufficient
        return
    count = len(rows.unique(dim=0))
    if count < min_rows:
        raise ValueError(f"{name} must have at least {min_rows} different rows, got {count} among {len(rows)}")


# -- values ---------------------------------------------------------------------------------------


def predict(model: Network, x: Any) -> Any:
    """Return the outputs ``[..., out_features]`` of the network for inputs ``x [..., in_features]``, without gradients.

    The outputs are computed in evaluation mode and in blocks of rows, so that the memory for the nodes between the
    layers is bounded. The inputs are converted to the dtype and the device of the network.

    Args:
        x: inputs ``[..., in_features]``: a tensor, a NumPy array, a DataFrame, or lists of numbers.

    Returns:
        A tensor in the dtype of the network and on the device of the network if ``x`` is a tensor, and a NumPy array
        otherwise. The array is float32 if the network is float16 or bfloat16.

    Raises:
        TypeError, ValueError: if ``x`` does not contain real numbers or has the wrong shape.

    Example:
        >>> model = KAN(width=[2, 5, 1], seed=0)
        >>> model.predict([[0.1, 0.2], [0.3, 0.4]]).shape
        (2, 1)
    """
    given = _read_rows("x", x)
    rows = rows_of(given, model.in_features).to(model.device, model.dtype)
    y = rows.new_empty(len(rows), model.width_in[-1])
    size = max(1, PREDICTED_VALUES // max(model.width_out))
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            for part, result in zip(rows.split(size), y.split(size)):
                result.copy_(model(part))
    finally:
        for module in training:
            module.training = True
    y = y.view(*given.shape[:-1], y.shape[-1])
    if isinstance(x, Tensor):
        return y
    return (y.float() if y.dtype.itemsize == 2 else y).cpu().numpy()


class LayerTrace(NamedTuple):
    """The values at the nodes and edges of one layer for N rows, as :func:`trace` returns them for each layer.

    Args:
        nodes: values ``[N, nodes]`` that enter the layer.
        edges: values ``[N, nodes, subnodes]`` of the edge functions, or None.
        subnodes: sums ``[N, subnodes]`` of the edges that end in each subnode.
        out: values ``[N, nodes of the next layer]`` that leave the layer, after products and affine maps.
    """

    nodes: Tensor
    edges: Tensor | None
    subnodes: Tensor
    out: Tensor

    def __repr__(self) -> str:
        return repr_with_shapes(self)


@checked(edges=FLAG)
@torch.no_grad()
def trace(model: Network, x: Any = None, edges: bool = False) -> list[LayerTrace]:
    """Compute the values at the nodes and edges of each layer, without gradients.

    Args:
        x: rows ``[..., in_features]`` as a tensor or an array. If None, the rows of the last fit are used or, if there
            was no fit, points spread evenly over the first layer's grids.
        edges: whether to also compute the values of every edge function, which takes N x nodes x subnodes numbers per
            layer.

    Returns:
        A list with a :class:`LayerTrace` for each layer of edges.

    Raises:
        TypeError, ValueError: if ``x`` has the wrong shape, dtype or type.
        RuntimeError: if ``edges`` is True and the parameters are distributed over processes.

    Example:
        >>> for step in KAN(width=[2, 5, 1], seed=0).trace(torch.rand(10, 2), edges=True):
        ...     print(step)
        LayerTrace(nodes=Tensor[10, 2], edges=Tensor[10, 2, 5], subnodes=Tensor[10, 5], out=Tensor[10, 5])
        LayerTrace(nodes=Tensor[10, 5], edges=Tensor[10, 5, 1], subnodes=Tensor[10, 1], out=Tensor[10, 1])
    """
    rows = rows_of(x, model.in_features) if isinstance(x, Tensor) else rows_for(model, x, strict=False)
    if edges:
        check_not_sharded(model, "a trace with edges=True")
    nodes = model._select_inputs(rows)
    found = []
    for layer in range(model.depth):
        values = edge_functions(model.layers[layer], model.symbolic[layer], nodes) if edges else None
        subnodes = model._subnode_values(layer, nodes)
        after = model._node_values(layer, subnodes)
        found.append(LayerTrace(nodes, values, subnodes, after))
        nodes = after
    return found


def get_act(model: Network, x: Any = None) -> list[LayerTrace]:
    """Compute the values at the nodes and edges of the network for given rows, and keep copies of at most 10,000 of the
    rows as ``model.sample``.

    :meth:`fit` keeps its training rows without a call of ``get_act``. After a training loop of your own, call
    ``get_act`` once, so that :meth:`auto_symbolic`, :meth:`prune` and :meth:`attribute` evaluate the network on your
    data.

    Args:
        x: rows ``[..., in_features]`` as a tensor or an array, or a dataset with ``train_input``. If None, the rows of
            the last fit are used.

    Returns:
        A list with a :class:`LayerTrace` for each layer, which includes the values of every edge.

    Raises:
        TypeError, ValueError: if the rows have the wrong shape, or if there are no rows.

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
    rows = rows_for(model, **given, strict=False)
    if not len(rows):
        raise ValueError("x must have at least one row, got none")
    steps = trace(model, rows, edges=True)
    model.sample = rows
    return steps


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.no_grad()
def get_fun(model: Network, l: int, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and outputs of edge ``(l, i, j)`` on the rows of the last fit, sorted by the input.

    Args:
        l: index of the layer of edges, counted from the inputs.
        i, j: index of the node where the edge starts, and index of the subnode where the edge ends.

    Returns:
        A tuple of the inputs ``[N]`` and the outputs ``[N]`` of the edge.

    Raises:
        TypeError, ValueError: if the edge does not exist.
    """
    check_edge(model, l, i, j)
    step = trace(model, edges=True)[l]
    assert step.edges is not None
    x, order = step.nodes[:, i].sort()
    return x, step.edges[order, i, j]


@checked(l=INDEX, i=INDEX, j=INDEX, verbose=FLAG)
def get_range(model: Network, l: int, i: int, j: int, verbose: bool = True) -> tuple[float, float, float, float]:
    """Return the ranges ``(x_min, x_max, y_min, y_max)`` of an edge's input and output on the rows of the last fit.

    Args:
        l, i, j: indices of the edge, see :meth:`get_fun`.
        verbose: whether to also print the ranges.

    Raises:
        TypeError, ValueError: if the edge does not exist.
    """
    x, y = get_fun(model, l, i, j)
    ends = x.min().item(), x.max().item(), y.min().item(), y.max().item()
    if verbose:
        print("x range: [{:.2f}, {:.2f}]\ny range: [{:.2f}, {:.2f}]".format(*ends))
    return ends


# -- edges ----------------------------------------------------------------------------------------


def check_has_values(model: Network) -> None:
    """Raise a ValueError if the parameters of the network are on the device ``"meta"``."""
    if model.device.type == "meta":
        raise ValueError(
            "the network is on the device meta, where parameters have no values: call to_empty(device=...) and then "
            "reset_parameters() or load_state_dict(...) first"
        )


def check_not_sharded(model: Network, what: str) -> None:
    """Raise a RuntimeError, which names the calling method, if tensors of the layers are distributed over processes."""
    for layer in model.layers:
        layer._check_not_sharded(what)


@checked(l=INDEX, i=INDEX, j=INDEX)
def check_edge(model: Network, l: int, i: int, j: int) -> None:
    """Raise a TypeError or ValueError if edge ``(l, i, j)`` does not exist, or the network has no values."""
    check_has_values(model)
    if l >= model.depth:
        raise ValueError(f"l must be below {model.depth}, the number of layers; got {l}")
    for name, value, count in (("i", i, model.width_in[l]), ("j", j, model.width_out[l + 1])):
        if value >= count:
            side = "inputs" if name == "i" else "outputs"
            raise ValueError(f"{name} must be below {count}, the {side} of layer {l}; got {value}")


def edge_kinds(model: Network, layer: int) -> tuple[Tensor, Tensor]:
    """Return a tuple of two bool masks ``[in, out]`` on the CPU: the edges of a layer that have an active spline, and
    the edges that have a formula. An edge with a spline and a formula is the sum of the two."""
    numeric = mask_of(model.layers[layer]).cpu()
    formulas = torch.zeros_like(numeric)
    for edge in model.symbolic[layer].edges:
        formulas[edge.i, edge.j] = True
    return numeric, formulas


def edges_on(model: Network, layer: int) -> Tensor:
    """Return a bool mask ``[in, out]``, on the CPU, of the edges of a layer that have an active spline or a formula."""
    numeric, formulas = edge_kinds(model, layer)
    return numeric | formulas
