"""The search for ``c f(a x + b) + d``: many edges and functions at once, in bounded memory.

It runs on the CPU, in float64, and finds the same on every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import INDEX, REAL, SHARE, Callback, Instance, check_finite, check_shape, check_tensor, checked

from ..layers.function_library import (
    BOUNDS,
    SYMBOLIC_LIB,
    FunctionName,
    Library,
    SymbolicFunction,
    check_function,
    lookup,
    names_of,
)
from .fitting import Range, Samples, fit


class SymbolicFits(NamedTuple):
    """Of F functions to E edges: ``affine [F, E, 4]``, rows (a, b, c, d), and ``r2 [F, E]``, float64.

    Example:
        >>> x = torch.rand(100, 1)
        >>> search(x, x.square(), ["x^2", "exp"]).affine.shape
        torch.Size([2, 1, 4])
    """

    names: list[str]
    affine: Tensor
    r2: Tensor


class Candidate(NamedTuple):
    """A function for an edge, as :func:`rank` scores it; ``affine`` is (a, b, c, d).

    Example:
        >>> x = torch.rand(100, 1)
        >>> rank(search(x, x.square(), ["x^2", "exp"]))[0].name
        'x^2'
    """

    name: str
    affine: tuple[float, float, float, float]
    r2: float
    complexity: float
    loss: float


@checked(names=Library(), a_range=BOUNDS, b_range=BOUNDS)
def search(
    x: Tensor,
    y: Tensor,
    names: Iterable[str] | None = None,
    *,
    a_range: Range = None,
    b_range: Range = None,
) -> SymbolicFits:
    """Fit functions to edges: for each pair the a, b, c, d for which ``c f(a x + b) + d`` is nearest to y.

    Args:
        x, y: ``[N, E]``, what goes into each of E edges and what comes out.
        names: of functions in the library; None for all.
        a_range, b_range: bounds of a and b, in units of x. Without, the search knows no units: it is one of
            where the range of x ends up on the function's own axis.

    Returns:
        The best of each function and edge, in a form that reads well: ``|a| = 1`` in powers, roots and
        logarithms, ``|c| = 1`` in exp, a > 0 where signs can move elsewhere, b within half a turn of 0. R2 is
        0 where a constant is the best (for instance where the domain holds no range at all), and 1 where y
        is constant. All of x's range is in the function's domain.

    Raises:
        TypeError, ValueError: for data of other shapes, none, or with NaN; for unknown names or ranges that
            are none.

    Example:
        >>> x = torch.linspace(0.5, 0.7, 200).unsqueeze(1)
        >>> fits = search(x, 3 * torch.exp(15 * x) + 2, ["exp", "tanh"])
        >>> [round(value, 2) for value in fits.affine[0, 0].tolist()]
        [15.0, 1.1, 1.0, 2.0]
    """
    names = names_of(names)
    return SymbolicFits(names, *_checked_fit([lookup(name) for name in names], x, y, a_range, b_range))


@checked(a_range=BOUNDS, b_range=BOUNDS)
def fit_params(
    x: Tensor,
    y: Tensor,
    fun: str | Callable[[Tensor], Tensor],
    a_range: Range = None,
    b_range: Range = None,
) -> tuple[Tensor, float]:
    """Fit one function to one edge.

    Args:
        x, y: ``[N]``.
        fun: a name in the library, or a function of a tensor.
        a_range, b_range: as in :func:`search`.

    Returns:
        ``[4]``, float64, (a, b, c, d) of ``c fun(a x + b) + d``, and R2.

    Raises:
        TypeError, ValueError: as :func:`search`.

    Example:
        >>> x = torch.linspace(-1, 1, 101)
        >>> params, r2 = fit_params(x, 5 * torch.sin(3 * x + 1) + 1, torch.sin)
        >>> [round(value, 3) for value in params.tolist()], round(r2, 6)
        ([3.0, 1.0, 5.0, 1.0], 1.0)
    """
    for name, value in (("x", x), ("y", y)):
        check_tensor(name, value)
        check_shape(name, value, ("N",) if name == "x" else tuple(x.shape))
    affine, r2 = _checked_fit([_function_of(fun)], x.unsqueeze(1), y.unsqueeze(1), a_range, b_range)
    return affine[0, 0], float(r2[0, 0])


def r2_loss(r2: float) -> float:
    """Bits that describe what a fit leaves unexplained. What is below 1e-5 counts no further: so much, and not
    at random, a trained spline differs from its formula.

    Example:
        >>> round(r2_loss(0.75), 3)
        -2.0
    """
    return math.log2(1 + 1e-5 - r2)


def c_loss(complexity: float) -> float:
    """Bits that describe a function: its complexity.

    Example:
        >>> c_loss(2)
        2
    """
    return complexity


@checked(
    fits=Instance(SymbolicFits), edge=INDEX, weight_simple=SHARE, r2_loss_fun=Callback(), c_loss_fun=Callback(),
    parameter_bits=REAL,
)  # fmt: skip
def rank(
    fits: SymbolicFits,
    edge: int = 0,
    *,
    weight_simple: float = 0.8,
    r2_loss_fun: Callable[[float], float] = r2_loss,
    c_loss_fun: Callable[[float], float] = c_loss,
    parameter_bits: float = 0.5,
) -> list[Candidate]:
    """The functions for an edge, the best first. The least loss is best,

        weight_simple * c_loss_fun(complexity) + (1 - weight_simple) * (r2_loss_fun(r2) + parameter_bits * p)

    where p counts those of a, b, c, d that no others make up for: 4 for cos, 3 for x^2, which a cos of little
    curvature can always imitate. Of functions that are the same, as sin and cos are, that with the b
    nearer to 0 comes first. What explains nothing comes last.

    Args:
        edge: which of the edges.
        weight_simple: from 0, complexity counts for nothing, to 1, R2 does.
        r2_loss_fun, c_loss_fun: from R2 and from complexity to bits. They are pykan's.
        parameter_bits: what a parameter has to save. In pykan it is 0.

    Raises:
        TypeError, ValueError: for an edge that is not there, or another weight.

    Example:
        >>> x = torch.linspace(-1, 1, 100).unsqueeze(1)
        >>> [candidate.name for candidate in rank(search(x, torch.cos(x), ["sin", "x", "cos"]))]
        ['cos', 'sin', 'x']
    """
    if edge >= fits.r2.shape[1]:
        raise ValueError(f"edge must be below {fits.r2.shape[1]}, got {edge}")
    candidates = []
    for name, affine, r2 in zip(fits.names, fits.affine[:, edge].tolist(), fits.r2[:, edge].tolist()):
        function = lookup(name)
        parameters = 4 - (function.scale is not None) - (function.shift is not None)
        loss = weight_simple * float(c_loss_fun(function.complexity))
        loss += (1 - weight_simple) * (float(r2_loss_fun(r2)) + parameter_bits * parameters)
        candidates.append(Candidate(name, tuple(affine), r2, function.complexity, loss))
    return sorted(candidates, key=lambda one: (one.r2 <= 0, one.loss, abs(one.affine[1])))


def _function_of(fun: str | Callable[[Tensor], Tensor]) -> SymbolicFunction:
    if isinstance(fun, str):
        return lookup(FunctionName().read("fun", fun))
    if not callable(fun):
        raise TypeError(f"fun must be a name or a function, got {type(fun).__name__}")
    check_function(fun, torch.tensor([0.25, 0.5], dtype=torch.float64))
    for entry in SYMBOLIC_LIB.values():
        if entry.fun is fun:
            return entry
    return SymbolicFunction(fun, lambda z: z, 1)


def _checked_fit(
    functions: list[SymbolicFunction], x: Tensor, y: Tensor, a_range: Range, b_range: Range
) -> tuple[Tensor, Tensor]:
    check_tensor("x", x)
    check_tensor("y", y)
    check_shape("x", x, ("N", "E"))
    check_shape("y", y, tuple(x.shape))
    if not len(x):
        raise ValueError("x must have at least one sample, got none")
    check_finite("x", x)
    check_finite("y", y)
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _one_thread(),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        return fit(functions, Samples.of(x, y), a_range, b_range)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many calls on little data: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
