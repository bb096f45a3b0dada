"""Changes of the grids of a network: refinement, and adaptation to samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastkan_kernels import Int, OneOrEach, Optional, check_finite, checked

from ..layers import grid as grids
from ..layers.distributed import check_one_process
from .samples import as_tensor
from .trace import rows_for, trace

if TYPE_CHECKING:
    from .core import Network, NetworkT

SIZES = Optional(OneOrEach(Int(least=1)))


@checked(new_grid=SIZES, grid=SIZES)
@torch.inference_mode(False)
@torch.no_grad()
def refine(
    model: NetworkT,
    new_grid: int | Sequence[int] | None = None,
    x: Any = None,
    *,
    grid: int | Sequence[int] | None = None,
    dataset: Any = None,
) -> NetworkT:
    """Return a new network that computes the same function with ``new_grid`` intervals in every grid.

    The outputs at the samples are exactly the same, unless a layer gets fewer intervals than before. If all values that
    enter a layer lie in its grids and the new size is a multiple of the old size, the grids are divided evenly, and the
    edge functions are the same on the grids. Otherwise all old knots of the layer are kept, including the outer knots,
    and knots are inserted between them where the values are; the edge functions are then the same everywhere. The
    splines of a layer with fewer intervals than before are refitted by least squares at the samples.

    Args:
        new_grid: number of intervals of every grid, or a list with one number for each layer.
        x: samples ``[..., in_features]`` (default: the rows of the last fit).
        grid: alias of ``new_grid``, as in pykan.
        dataset: dataset in a form that :meth:`fit` accepts, whose inputs are used as samples instead of ``x``.

    Returns:
        A network that shares no tensors with the model.

    Raises:
        TypeError, ValueError: if a grid size is below 1, or if the samples have the wrong shape, are empty or are not
            finite.
        RuntimeError: if samples are used while ``torch.distributed`` is initialised with several processes, because
            each process would use different samples.

    Example:
        >>> model = KAN(width=[2, 5, 1], grid=5, seed=0)
        >>> finer = model.refine(10, x=torch.rand(100, 2))
        >>> finer.grid
        [10, 10]
    """
    if (new_grid is None) == (grid is None):
        raise TypeError(f"refine() takes new_grid, or grid in its place; got new_grid={new_grid}, grid={grid}")
    wanted = grid if new_grid is None else new_grid
    sizes = [wanted] * model.depth if isinstance(wanted, int) else list(wanted or ())
    if len(sizes) != model.depth:
        raise ValueError(f"new_grid must be a number or a list for each of the {model.depth} layers, got {sizes}")
    if x is not None or model.sample is not None:
        check_one_process("refine at samples")
    new = copy.deepcopy(model)
    rows = rows_for(model, x, dataset, min_rows=1)
    for number, (layer, step, size) in enumerate(zip(new.layers, trace(model, rows), sizes)):
        check_finite("x" if number == 0 else f"the input of layer {number}", step.nodes)
        old = layer.spline_weight, layer.knots, layer.spline_order
        layer._write_splines(*grids.refine(*old, size, step.nodes, layer.outside))
    return new


@torch.inference_mode(False)
@torch.no_grad()
def update_grid_from_samples(model: Network, x: Any = None, *, dataset: Any = None, sample_weight: Any = None) -> None:
    """Adapt the knots of every layer in place to the values that enter the layer, and refit the splines at these
    values.

    The layers are updated one after another by :meth:`KANLinear.update_grid`, with the model's ``grid_eps``.

    Args:
        x: samples ``[..., in_features]`` (default: the rows of the last fit).
        dataset: dataset in a form that :meth:`fit` accepts, whose inputs are used as samples instead of ``x``.
        sample_weight: weights ``[N]`` of the samples. A sample of weight 2 counts as two samples, and a sample of
            weight 0 is ignored.

    Raises:
        TypeError, ValueError: if the samples have the wrong shape, are empty or are not finite, if the weights are
            invalid, or if the values that enter a layer are not finite. In these cases the network is left unchanged.
        RuntimeError: if ``torch.distributed`` is initialised with several processes, because each process would use
            different samples.
    """
    check_one_process("update_grid_from_samples")
    nodes = model._select_inputs(rows_for(model, x, dataset, min_rows=1))
    weight = None if sample_weight is None else as_tensor("sample_weight", sample_weight)
    before = [(layer.spline_weight.clone(), layer.knots.clone()) for layer in model.layers]
    try:
        for number, layer in enumerate(model.layers):
            if model._has_numeric_edges(number):
                layer.update_grid(nodes, grid_eps=model.grid_eps, sample_weight=weight)
            nodes = model._node_values(number, model._subnode_values(number, nodes))
    except BaseException:
        for layer, (weight, knots) in zip(model.layers, before):
            layer._write_splines(weight, knots)
        raise
