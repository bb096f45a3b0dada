"""Search for ``c f(a x + b) + d`` for many edges and functions at once, and the ranking of its results.

It runs on the CPU, in float64, in bounded memory, and is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

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
    """Fits of F functions to E edges, in float64, as :func:`search` returns them.

    Attributes:
        names: names of the functions.
        affine: ``[F, E, 4]``, parameters (a, b, c, d).
        r2: ``[F, E]``, R2 of each fit.
    """

    names: list[str]
    affine: Tensor
    r2: Tensor


class Candidate(NamedTuple):
    """A function for an edge, as ranked by :func:`rank`.

    Attributes:
        name: name of the function.
        affine: parameters (a, b, c, d).
        r2: R2 of the fit.
        complexity: complexity of the function.
        loss: the loss by which it is ranked.
    """

    name: str
    affine: tuple[float, float, float, float]
    r2: float
    complexity: float
    loss: float


@checked(names=Library(), a_range=BOUNDS, b_range=BOUNDS)
def search(
    x: Tensor, y: Tensor, names: Iterable[str] | None = None, *, a_range: Range = None, b_range: Range = None
) -> SymbolicFits:
    """Fit each function f to each edge: find a, b, c, d for which ``c f(a x + b) + d`` is nearest to y.

    Args:
        x, y: ``[N, E]``, inputs and outputs of E edges.
        names: names of functions in the library; None for all.
        a_range, b_range: bounds of a and b. Without them, the search does not depend on the units of x: it is over
            the two arguments of f to which the ends of x's range are mapped.

    Returns:
        The best fit of each function to each edge. All of x's range is mapped into the function's domain. Of
        equivalent parameters those that are easiest to read are returned: ``|a| = 1`` in powers, roots and logarithms,
        ``|c| = 1`` in exp, a > 0 if f is even or odd, and b within half a period of 0. R2 is 0 if no fit is better
        than a constant (for instance because none is in the domain), and 1 if y is constant.

    Raises:
        TypeError, ValueError: for data that is empty, of other shapes, NaN or infinite; for unknown names; and for
            invalid ranges.

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
    x: Tensor, y: Tensor, fun: str | Callable[[Tensor], Tensor], a_range: Range = None, b_range: Range = None
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
    """Loss of a fit, in bits: the logarithm of the unexplained share of the variance.

    Shares below 1e-5 count alike, since trained splines differ systematically from their formulas by about as much.
    """
    return math.log2(1 + 1e-5 - r2)


def c_loss(complexity: float) -> float:
    """Loss of a function, in bits: its complexity itself."""
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
    """Rank the functions for an edge by their loss, the least first. The loss is

        weight_simple * c_loss_fun(complexity) + (1 - weight_simple) * (r2_loss_fun(r2) + parameter_bits * p)

    where p is the number of independent parameters among a, b, c, d: 4 for cos, but 3 for x^2, where c makes up for the
    size of a. Without this term a cos of low frequency would always match x^2. Of equivalent functions, such as sin
    and cos, the one whose b is nearer to 0 comes first. Functions with an R2 of 0 come last.

    Args:
        fits: the result of :func:`search`.
        edge: index of the edge.
        weight_simple: weight of simplicity against R2, from 0 (only R2 counts) to 1 (only complexity counts).
        r2_loss_fun, c_loss_fun: functions from R2 and from complexity to bits; the defaults are pykan's.
        parameter_bits: bits that each independent parameter costs; 0 in pykan.

    Returns:
        A :class:`Candidate` for each function.

    Raises:
        TypeError, ValueError: for an edge that doesn't exist, or a weight outside 0 to 1.

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
    on_cpu: Any = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad(), _one_thread(), on_cpu:
        return fit(functions, Samples.of(x, y), a_range, b_range)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: with many calls on little data, threads would mostly wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
