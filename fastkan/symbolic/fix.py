"""Functions that make a single edge symbolic or numeric again, or rank the library's functions for an edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import FLAG, INDEX, SHARE, Callback, Choice, checked, warn

from ..layers.edge_functions import edge_functions, mask_of
from ..layers.function_library import BOUNDS, IDENTITY, SYMBOLIC_LIB, FunctionName, Library, SymbolicFunction
from ..layers.tables import table
from ..network.trace import check_edge, check_not_sharded, edges_on, rows_for, trace
from .search import Range, c_loss, fit_params, r2_loss, rank, search

if TYPE_CHECKING:
    from ..network.core import Network

LOW_R2 = 0.9  # Value of R2 below which the printed line recommends suggest_symbolic
# Minimum number of rows for a fit, twice the number of parameters a, b, c and d; unrelated functions can fit fewer rows
MIN_ROWS = 8
MODES = {"n": (True, False), "s": (False, True), "sn": (True, True), "ns": (True, True), "off": (False, False)}


@checked(
    l=INDEX, i=INDEX, j=INDEX, fun_name=FunctionName(), fit_params_bool=FLAG, a_range=BOUNDS, b_range=BOUNDS,
    verbose=FLAG, random=FLAG,
)  # fmt: skip
@torch.inference_mode(False)
@torch.no_grad()
def fix_symbolic(
    model: Network,
    l: int,
    i: int,
    j: int,
    fun_name: str,
    fit_params_bool: bool = True,
    a_range: Range = None,
    b_range: Range = None,
    verbose: bool = True,
    random: bool = False,
    log_history: object = None,
    *,
    x: Any = None,
    dataset: Any = None,
) -> float | None:
    """Replace the spline of an edge by a formula ``c f(a x + b) + d``, in place. :meth:`unfix_symbolic` restores the
    spline.

    The parameters of the formula are new tensors, so create the optimizer after this call. While all edges of a layer
    are formulas, the parameters of its splines have ``requires_grad=False``. Those that were trained before are trained
    again once the layer has a spline, so freeze them after that.

    Args:
        l, i, j: layer, input node and output subnode of the edge.
        fun_name: name of f in the library; with ``"0"`` the edge is the constant d.
        fit_params_bool: whether to fit a, b, c and d to the current function of the edge. If False, a and c are 1, and
            b and d are 0.
        a_range, b_range: lower and upper bound of a and of b. If None, the search range is relative to the range of
            the edge's inputs.
        verbose: whether to print the R2 of the fit.
        random: whether to draw a, b, c and d uniformly from -1 to 1 by torch's generator if ``fit_params_bool`` is
            False.
        log_history: ignored, with a warning.
        x: rows ``[..., in_features]`` to fit on (default: the rows of the last fit).
        dataset: a dataset in the format of :meth:`fit`, to be given in place of ``x``.

    Returns:
        The R2 of the fit, or None if the parameters are not fitted.

    Raises:
        TypeError, ValueError: for an unknown edge or function, an invalid range, a fit to an edge that is off, or
            fewer than 8 different rows for a fit. If an error is raised, the network is left unchanged.
        RuntimeError: if the parameters are fitted while ``torch.distributed`` runs several processes, whose rows and
            therefore formulas would differ, or if the weights are distributed over processes.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
        >>> model.symbolic[0].edges, model.layers[0].mask.tolist()
        ((Edge(i=1, j=0, name='sin'),), [[1.0], [0.0]])
        >>> r2 = model.fix_symbolic(0, 1, 0, "tanh", x=torch.linspace(-1, 1, 200).reshape(100, 2))
        edge (0, 1, 0): tanh, R2 0.999996
    """
    check_edge(model, l, i, j)
    if log_history is not None:
        warn("log_history has no meaning here: nothing is logged")
    affine: Sequence[float] = IDENTITY
    r2 = None
    if fit_params_bool:
        if fun_name != "0" and not edges_on(model, l)[i, j]:
            raise ValueError(f"edge {l, i, j} is off, so {fun_name!r} cannot be fitted to it: turn it on by set_mode, "
                             "or pass fit_params_bool=False")  # fmt: skip
        params, r2 = fit_params(*_samples(model, l, i, j, x, dataset, "fix_symbolic"), fun_name, a_range, b_range)
        affine = params.tolist()
    elif random:
        affine = (torch.rand(4) * 2 - 1).tolist()
    with all_or_nothing(model):
        model.symbolic[l].fix(i, j, fun_name, affine)
        set_numeric(model, l, [(i, j)], False)
        if verbose and r2 is not None:
            advice = f"; suggest_symbolic{l, i, j} ranks others" if r2 < LOW_R2 and fun_name != "0" else ""
            print(f"edge {l, i, j}: {fun_name}, R2 {r2:.6f}{advice}")
    return r2


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.inference_mode(False)
def unfix_symbolic(model: Network, l: int, i: int, j: int) -> None:
    """Make a symbolic edge numeric again, with the spline that it had before, in place.

    Args:
        l, i, j: as in :meth:`fix_symbolic`.

    Raises:
        TypeError, ValueError: for an unknown edge or an edge that is not symbolic. If an error is raised, the
            network is left unchanged.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
        >>> model.unfix_symbolic(0, 1, 0)
        >>> model.symbolic[0].edges
        ()
    """
    check_edge(model, l, i, j)
    if model.symbolic[l].name(i, j) is None:
        raise ValueError(f"edge {l, i, j} must be symbolic to be unfixed, but it has no formula")
    with all_or_nothing(model):
        model.symbolic[l].unfix(i, j)
        set_numeric(model, l, [(i, j)], True)


@torch.inference_mode(False)
def unfix_symbolic_all(model: Network) -> None:
    """Make all symbolic edges numeric again, with the splines that they had before, in place.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
        >>> model.unfix_symbolic_all()
        >>> model.symbolic[0].edges
        ()
    """
    with all_or_nothing(model):
        for layer, symbolic in enumerate(model.symbolic):
            for edge in symbolic.edges:
                unfix_symbolic(model, layer, edge.i, edge.j)


@checked(l=INDEX, i=INDEX, j=INDEX, mode=Choice(MODES))
@torch.inference_mode(False)
def set_mode(model: Network, l: int, i: int, j: int, mode: str) -> None:
    """Set whether an edge computes its spline, its formula, both or nothing, in place.

    Args:
        l, i, j: layer, input node and output subnode of the edge.
        mode: ``"n"`` for the spline, ``"s"`` for the formula, ``"sn"`` or ``"ns"`` for their sum, ``"off"`` for
            neither. ``"s"``, ``"sn"`` and ``"ns"`` require that the edge has a formula; ``"n"`` and ``"off"`` delete
            the formula.

    Raises:
        TypeError, ValueError: for an unknown edge or mode, or a missing formula. If an error is raised, the
            network is left unchanged.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.set_mode(0, 1, 0, "off")
        >>> model.layers[0].mask
        tensor([[1.],
                [0.]])
    """
    check_edge(model, l, i, j)
    numeric, formula = MODES[mode]
    symbolic = model.symbolic[l]
    if formula and symbolic.name(i, j) is None:
        raise ValueError(f"mode {mode!r} needs a formula, but edge {l, i, j} has none: give it one by fix_symbolic")
    with all_or_nothing(model):
        if not formula and symbolic.name(i, j) is not None:
            symbolic.unfix(i, j)
        set_numeric(model, l, [(i, j)], numeric)


@checked(
    l=INDEX, i=INDEX, j=INDEX, a_range=BOUNDS, b_range=BOUNDS, lib=Library(), topk=INDEX, verbose=FLAG,
    r2_loss_fun=Callback(), c_loss_fun=Callback(), weight_simple=SHARE,
)  # fmt: skip
@torch.no_grad()
def suggest_symbolic(
    model: Network,
    l: int,
    i: int,
    j: int,
    a_range: Range = None,
    b_range: Range = None,
    lib: Iterable[str] | None = None,
    topk: int = 5,
    verbose: bool = True,
    r2_loss_fun: Callable[[float], float] = r2_loss,
    c_loss_fun: Callable[[float], float] = c_loss,
    weight_simple: float = 0.8,
    *,
    x: Any = None,
    dataset: Any = None,
) -> tuple[str, SymbolicFunction, float, float]:
    """Rank the library's functions for an edge by R2 and complexity, without changing the model.

    Args:
        l, i, j, a_range, b_range: as in :meth:`fix_symbolic`.
        lib: names of the functions to try (default: all functions of the library).
        topk: number of functions in the printed table.
        verbose: whether to print the table.
        r2_loss_fun, c_loss_fun, weight_simple: as in :func:`fastkan.symbolic.rank`.
        x, dataset: as in :meth:`fix_symbolic`.

    Returns:
        A tuple of the name, the library entry, the R2 and the complexity of the best function.

    Raises:
        TypeError, ValueError: for an unknown edge or function, an invalid range, or fewer than 8 different rows.

    Example:
        >>> model = KAN(width=[1, 1], seed=0)
        >>> model.fix_symbolic(0, 0, 0, "exp", fit_params_bool=False)
        >>> x = torch.linspace(-1, 1, 100).unsqueeze(1)
        >>> best = model.suggest_symbolic(0, 0, 0, lib=["x", "exp", "sin"], x=x)  # doctest: +ELLIPSIS
        function        R2  complexity    loss
        exp       1.000000           2  ...
        sin       0.998265           2  ...
        x         0.938004           1  ...
        >>> best[0], best[3]
        ('exp', 2)
    """
    check_edge(model, l, i, j)
    check_not_sharded(model, "suggest_symbolic")
    inputs, outputs = (value.unsqueeze(1) for value in _samples(model, l, i, j, x, dataset))
    fits = search(inputs, outputs, lib, a_range=a_range, b_range=b_range)
    ranked = rank(fits, weight_simple=weight_simple, r2_loss_fun=r2_loss_fun, c_loss_fun=c_loss_fun)
    best = ranked[0]
    if verbose:
        rows = [[c.name, f"{c.r2:.6f}", f"{c.complexity:g}", f"{c.loss:.3f}"] for c in ranked[:topk]]
        print(table("lrrr", ["function", "R2", "complexity", "loss"], *rows))
    return best.name, SYMBOLIC_LIB[best.name], best.r2, best.complexity


# -- shared with auto_symbolic -------------------------------------------------------------------------


@contextmanager
def all_or_nothing(model: Network) -> Iterator[None]:
    """Restore all formulas and masks of a network if the body of the ``with`` statement raises or is interrupted."""
    before = [(layer.mask, edges.edges, edges.affine) for layer, edges in zip(model.layers, model.symbolic)]
    try:
        yield
    except BaseException:
        for place, (mask, edges, affine) in enumerate(before):
            model.layers[place].mask = mask
            model.symbolic[place]._set_edges(edges, affine)
            model.layers[place]._freeze_if_idle()
        raise


def set_numeric(model: Network, layer: int, edges: Sequence[tuple[int, int]], on: bool) -> None:
    """Switch the splines of a layer's edges ``(i, j)`` on or off."""
    mask = mask_of(model.layers[layer]).clone()
    for edge in edges:
        mask[edge] = on
    if not torch.equal(mask, mask_of(model.layers[layer])):
        model.layers[layer].set_mask(mask.float())
    model.layers[layer]._freeze_if_idle()


def _samples(
    model: Network, l: int, i: int, j: int, x: Any, dataset: Any, changing: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return a tuple of the inputs ``[N]`` and the outputs ``[N]`` of an edge."""
    nodes = trace(model, rows_for(model, x, dataset, min_rows=MIN_ROWS, changing=changing))[l].nodes
    return nodes[:, i], edge_functions(model.layers[l], model.symbolic[l], nodes)[:, i, j]
