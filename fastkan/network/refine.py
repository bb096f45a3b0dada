"""Changes of the grids of a network: refinement, and adaptation to samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import Int, OneOrEach, Optional, check_finite, checked

from ..layers import grid as grids
from ..layers.distributed import GROUP, all_gather_values, broadcast, check_every_rank, gather_samples, on_every_rank
from .samples import as_tensor
from .trace import LayerTrace, check_not_sharded, rows_for, trace

if TYPE_CHECKING:
    from .core import Network, NetworkT

SIZES = Optional(OneOrEach(Int(least=1)))


@checked(new_grid=SIZES, grid=SIZES, group=GROUP)
@torch.inference_mode(False)
@torch.no_grad()
def refine(
    model: NetworkT,
    new_grid: int | Sequence[int] | None = None,
    x: Any = None,
    *,
    grid: int | Sequence[int] | None = None,
    dataset: Any = None,
    group: Any = None,
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
        group: process group whose ranks all call the method, each with its own samples, as in
            :meth:`KANLinear.update_grid`.

    Returns:
        A network that shares no tensors with the model.

    Raises:
        TypeError, ValueError: if a grid size is below 1, if the samples have the wrong shape, are empty or are not
            finite, or if the networks of the ranks or their grid sizes differ.
        RuntimeError: if samples are used without a group while ``torch.distributed`` is initialised with several
            processes, because each process would use different samples, or if the parameters are distributed over
            processes by ``fully_shard`` or ``parallelize_module``.

    Example:
        >>> model = KAN(width=[2, 5, 1], grid=5, seed=0)
        >>> finer = model.refine(10, x=torch.rand(100, 2))
        >>> finer.grid
        [10, 10]
    """
    wanted = grid if new_grid is None else new_grid
    sizes = [wanted] * model.depth if isinstance(wanted, int) else list(wanted or ())

    def read() -> dict[str, Any]:
        if (new_grid is None) == (grid is None):
            raise TypeError(f"refine() takes new_grid, or grid in its place; got new_grid={new_grid}, grid={grid}")
        if len(sizes) != model.depth:
            raise ValueError(f"new_grid must be a number or a list for each of the {model.depth} layers, got {sizes}")
        return {**_equal_on_ranks(model, "refine"), "new_grid": sizes}

    check_every_rank("refine", read, group)
    rows = _joined_rows(model, "refine", x, dataset, group)
    new = copy.deepcopy(model)
    on_every_rank(lambda: _refine_layers(new, sizes, trace(model, rows)), group)
    broadcast(_splines(new), group)
    return new


def _refine_layers(new: Network, sizes: Sequence[int], steps: Sequence[LayerTrace]) -> None:
    """Refine the grid of each layer in place, at the values of the nodes of a trace."""
    for number, (layer, step, size) in enumerate(zip(new.layers, steps, sizes)):
        check_finite("x" if number == 0 else f"the input of layer {number}", step.nodes)
        old = layer.spline_weight, layer.knots, layer.spline_order
        layer._write_splines(*grids.refine(*old, size, step.nodes, layer.outside))


@checked(group=GROUP)
@torch.inference_mode(False)
@torch.no_grad()
def update_grid_from_samples(
    model: Network, x: Any = None, *, dataset: Any = None, sample_weight: Any = None, group: Any = None
) -> None:
    """Adapt the knots of every layer in place to the values that enter the layer, and refit the splines at these
    values.

    The layers are updated one after another by :meth:`KANLinear.update_grid`, with the model's ``grid_eps``.

    Args:
        x: samples ``[..., in_features]`` (default: the rows of the last fit).
        dataset: dataset in a form that :meth:`fit` accepts, whose inputs are used as samples instead of ``x``.
        sample_weight: weights ``[N]`` of the samples. A sample of weight 2 counts as two samples, and a sample of
            weight 0 is ignored.
        group: process group, usually ``torch.distributed.group.WORLD``, whose ranks all call the method, each with its
            own samples, of which a rank may have none. The samples of all ranks are used, or a selection of 10,000 if
            there are more, and all ranks get the same knots and coefficients. A group cannot be combined with weights.

    Raises:
        TypeError, ValueError: if the samples have the wrong shape, are empty or are not finite, if the weights are
            invalid or are passed together with a group, if the values that enter a layer are not finite, or if the
            networks of the ranks have different sizes or dtypes. In these cases the network is left unchanged, on all
            ranks of the group.
        RuntimeError: if ``torch.distributed`` is initialised with several processes and ``group`` is None, because each
            process would use different samples, or if the parameters are distributed over processes by ``fully_shard``
            or ``parallelize_module``.
    """

    def read() -> dict[str, Any]:
        if sample_weight is not None and group is not None:
            raise ValueError("sample_weight and group cannot be combined: one of them must be None")
        return _equal_on_ranks(model, "update_grid_from_samples")

    check_every_rank("update_grid_from_samples", read, group)
    weight = None if sample_weight is None else as_tensor("sample_weight", sample_weight)
    rows = _joined_rows(model, "update_grid_from_samples", x, dataset, group)
    with model._restored_grids_after_errors():
        on_every_rank(lambda: model._adapt_grids(rows, weight), group)
    broadcast(_splines(model), group)


def _joined_rows(model: Network, what: str, x: Any, dataset: Any, group: Any) -> Tensor:
    """Return the rows of this process or, if a group is given, of all ranks of the group."""
    has_rows = x is not None or dataset is not None or model.sample is not None
    if not any([has_rows] if group is None else all_gather_values(has_rows, group)):
        return rows_for(model, min_rows=1)  # Points spread over the grids are the same on all ranks.

    def read() -> Tensor:
        if not has_rows:
            return torch.empty(0, model.in_features, dtype=model.dtype, device=model.device)
        return rows_for(model, x, dataset, min_rows=1 if group is None else 0)

    return gather_samples(what, read, group)


def _splines(model: Network) -> list[Tensor]:
    """Return the coefficients and the knots of all layers."""
    return [tensor for layer in model.layers for tensor in (layer.spline_weight, layer.knots)]


def _equal_on_ranks(model: Network, what: str) -> dict[str, Any]:
    """Check that the network is not distributed, and return what must be equal on all ranks of a group, by name."""
    check_not_sharded(model, what)
    layers = {
        f"layers[{number}].{name}": getattr(layer, name)
        for number, layer in enumerate(model.layers)
        for name in ("spline_weight", "knots")
    }
    return {"width": model.width, "input_id": model.input_id, **layers}
