"""Edges to formulas and back, one at a time."""

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
from ..network.trace import check_edge, rows_for, trace
from .search import Range, c_loss, fit_params, r2_loss, rank, search

if TYPE_CHECKING:
    from ..network.core import Network

POOR = 0.9  # R2 below which a fit deserves a word
MIN_ROWS = 8  # twice as many as a, b, c and d: through fewer, functions pass that have nothing to do with the edge
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
    """Make an edge the formula ``c f(a x + b) + d``, in place. Its spline is kept for :meth:`unfix_symbolic`.

    Make the optimizer after: the formulas' parameters are new ones.

    Args:
        l, i, j: layer, node that the edge comes from, and subnode that it goes to.
        fun_name: of f, in the library; ``"0"`` leaves the constant d.
        fit_params_bool: whether a, b, c, d are fitted to what the edge is now, at the rows given or those of the last
            fit. Else they are 1, 0, 1, 0.
        a_range, b_range: bounds for the fit. Without, it is one in units of the edge's own range.
        verbose: whether to print how good the fit is.
        random: whether a, b, c, d are, where they aren't fitted, drawn from -1 to 1 by torch's generator.
        log_history: has no meaning here.
        x: ``[..., in_features]`` rows to go by; None takes those of the last fit.
        dataset: instead of x, as :meth:`fit` takes it.

    Returns:
        R2 of the fit; None without one.

    Raises:
        TypeError, ValueError: for an edge, a function or a range that is not there, a fit to an edge that is off, and
            fewer than 8 different rows for a fit; nothing has changed then.

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
        if fun_name != "0" and not _is_on(model, l, i, j):
            raise ValueError(
                f"edge {l, i, j} is off, so there is nothing to fit {fun_name!r} to: switch it on by set_mode, or pass "
                "fit_params_bool=False"
            )
        params, r2 = fit_params(*_samples(model, l, i, j, x, dataset), fun_name, a_range, b_range)
        affine = params.tolist()
    elif random:
        affine = (torch.rand(4) * 2 - 1).tolist()
    with all_or_nothing(model):
        model.symbolic[l].fix(i, j, fun_name, affine)
        set_numeric(model, l, [(i, j)], False)
        if verbose and r2 is not None:
            word = f"; suggest_symbolic{l, i, j} ranks others" if r2 < POOR and fun_name != "0" else ""
            print(f"edge {l, i, j}: {fun_name}, R2 {r2:.6f}{word}")
    return r2


@checked(l=INDEX, i=INDEX, j=INDEX)
@torch.inference_mode(False)
def unfix_symbolic(model: Network, l: int, i: int, j: int) -> None:
    """Make a formula the spline again that the edge was before, in place.

    Raises:
        TypeError, ValueError: for an edge that is not there, or no formula; nothing has changed then.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 1, 0, "sin", fit_params_bool=False)
        >>> model.unfix_symbolic(0, 1, 0)
        >>> model.symbolic[0].edges
        ()
    """
    check_edge(model, l, i, j)
    if model.symbolic[l].name(i, j) is None:
        raise ValueError(f"edge {l, i, j} is no formula, so there is nothing to take back")
    with all_or_nothing(model):
        model.symbolic[l].unfix(i, j)
        set_numeric(model, l, [(i, j)], True)


@torch.inference_mode(False)
def unfix_symbolic_all(model: Network) -> None:
    """Make all formulas the splines again that they were, in place.

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
    """Say what counts on an edge, in place.

    Args:
        l, i, j: layer, node that the edge comes from, and subnode that it goes to.
        mode: ``"n"`` its spline; ``"s"`` its formula, which it must have; ``"sn"`` their sum; ``"off"`` neither. A
            formula that doesn't count is forgotten.

    Raises:
        TypeError, ValueError: for an edge or a mode that is not there; nothing has changed then.

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
        raise ValueError(f"mode {mode!r} takes a formula, but edge {l, i, j} has none: give it one by fix_symbolic")
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
    """Rank functions for an edge by R2 and by complexity; the model stays as it is.

    Args:
        l, i, j: layer, node that the edge comes from, and subnode that it goes to.
        a_range, b_range: bounds for the fit. Without, it is one in units of the edge's own range.
        lib: names of the functions; None for all.
        topk: how many to print.
        verbose: whether to print the table.
        r2_loss_fun, c_loss_fun, weight_simple: see :func:`fastkan.symbolic.search.rank`.
        x: ``[..., in_features]`` rows to go by; None takes those of the last fit.
        dataset: instead of x, as :meth:`fit` takes it.

    Returns:
        Name, library entry, R2 and complexity of the best.

    Raises:
        TypeError, ValueError: for an edge, functions or ranges that are not there, and fewer than 8 different rows.

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
    inputs, outputs = (value.unsqueeze(1) for value in _samples(model, l, i, j, x, dataset))
    fits = search(inputs, outputs, lib, a_range=a_range, b_range=b_range)
    ranked = rank(fits, weight_simple=weight_simple, r2_loss_fun=r2_loss_fun, c_loss_fun=c_loss_fun)
    best = ranked[0]
    if verbose:
        rows = [[c.name, f"{c.r2:.6f}", f"{c.complexity:g}", f"{c.loss:.3f}"] for c in ranked[:topk]]
        print(table("lrrr", ["function", "R2", "complexity", "loss"], *rows))
    return best.name, SYMBOLIC_LIB[best.name], best.r2, best.complexity


# -- plumbing ------------------------------------------------------------------------------------------


@contextmanager
def all_or_nothing(model: Network) -> Iterator[None]:
    """Formulas and masks stay what they were if what follows raises, or is interrupted."""
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
    mask = mask_of(model.layers[layer]).clone()
    for edge in edges:
        mask[edge] = on
    if not torch.equal(mask, mask_of(model.layers[layer])):
        model.layers[layer].set_mask(mask.float())
    model.layers[layer]._freeze_if_idle()


def _is_on(model: Network, l: int, i: int, j: int) -> bool:
    return bool(mask_of(model.layers[l])[i, j]) or model.symbolic[l].name(i, j) is not None


def _samples(model: Network, l: int, i: int, j: int, x: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of an edge, ``[N]`` each."""
    nodes = trace(model, rows_for(model, x, dataset, min_rows=MIN_ROWS))[l].nodes
    return nodes[:, i], edge_functions(model.layers[l], model.symbolic[l], nodes)[:, i, j]
