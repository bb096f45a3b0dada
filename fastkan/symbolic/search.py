"""Search for the best a, b, c and d of ``c f(a x + b) + d`` for many edges and functions, and ranking of the functions.

The search runs on the CPU, in float64 and in bounded memory, and its results are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import (
    INDEX,
    REAL,
    SHARE,
    Callback,
    Instance,
    check_finite,
    check_shape,
    check_tensor,
    checked,
    repr_with_shapes,
)

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
from ..training.threads import one_thread
from .fitting import Range, Samples, fit


class SymbolicFits(NamedTuple):
    """The result of :func:`search`: fits of F functions to E edges, in float64.

    Attributes:
        names: names of the functions.
        affine: parameters (a, b, c, d) ``[F, E, 4]`` of each fit.
        r2: R2 ``[F, E]`` of each fit.
    """

    names: list[str]
    affine: Tensor
    r2: Tensor

    def __repr__(self) -> str:
        return repr_with_shapes(self)


class Candidate(NamedTuple):
    """A function that :func:`rank` has ranked for an edge.

    Attributes:
        name: name of the function.
        affine: parameters (a, b, c, d).
        r2: R2 of the fit.
        complexity: complexity of the function.
        loss: the loss by which the functions are ranked.
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
    """Find, for each function f and each edge, the a, b, c and d for which ``c f(a x + b) + d`` is closest to y.

    Args:
        x: inputs ``[N, E]`` of E edges.
        y: outputs ``[N, E]`` of the E edges.
        names: names of functions in the library (default: all functions).
        a_range, b_range: lower and upper bound of a and of b. Without any bounds, the search does not depend on the
            units of x, because the search is over the values of ``a x + b`` at the two ends of the range of x.

    Returns:
        The best fit of each function to each edge. The values of ``a x + b`` are in the domain of the function over
        the whole range of x. If several sets of parameters give the same function, the set that is easiest to read is
        chosen, with ``|a| = 1`` in powers, roots and logarithms, ``|c| = 1`` in exp, a > 0 if f is even or odd, and b
        within half a period of 0. R2 is 1 if y is constant, and R2 is 0 if y is not constant and no fit is better than
        a constant, for instance because no fit is in the domain.

    Raises:
        TypeError, ValueError: for data that is empty, NaN, infinite or of the wrong shape, for unknown names, and for
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
        x: inputs ``[N]`` of the edge.
        y: outputs ``[N]`` of the edge.
        fun: a name in the library, or a function from a tensor to a tensor.
        a_range, b_range: as in :func:`search`.

    Returns:
        A tuple of the parameters (a, b, c, d) ``[4]`` of ``c fun(a x + b) + d``, in float64, and the R2 of the fit.

    Raises:
        TypeError, ValueError: in the same cases as :func:`search`.

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
    """Return the loss of a fit, in bits: the binary logarithm of the sum of 1e-5 and the unexplained fraction of the
    variance.

    1e-5 is added so that all fractions well below 1e-5 get about the same loss, because a trained spline typically
    differs from its formula by about 1e-5 of the variance anyway.
    """
    return math.log2(1 + 1e-5 - r2)


def c_loss(complexity: float) -> float:
    """Return the loss of a function, in bits, which is simply the complexity of the function."""
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
    """Sort the functions for an edge by their loss in ascending order. The loss is

        weight_simple * c_loss_fun(complexity) + (1 - weight_simple) * (r2_loss_fun(r2) + parameter_bits * p)

    where p is the number of independent parameters among a, b, c and d. For instance, p is 4 for cos and 3 for x^2,
    because a change of the scale of a and b in ``c (a x + b)^2 + d`` can be undone by a change of c. Without the term
    ``parameter_bits * p``, a cos of low frequency, which approximates x^2 closely, would always rank as high as x^2. If
    several functions are equivalent, such as sin and cos, the function whose b is closest to 0 comes first. Functions
    with an R2 of 0 come last.

    Args:
        fits: the result of :func:`search`.
        edge: index of the edge.
        weight_simple: weight of simplicity relative to R2, from 0 (only R2 counts) to 1 (only complexity counts).
        r2_loss_fun: function from R2 to a loss in bits; the default is the function that pykan uses.
        c_loss_fun: function from complexity to a loss in bits; the default is the function that pykan uses.
        parameter_bits: loss of each independent parameter, in bits; 0 gives the loss that pykan uses.

    Returns:
        A list of :class:`Candidate` entries, one for each function.

    Raises:
        TypeError, ValueError: for an edge that does not exist, or a ``weight_simple`` outside the range from 0 to 1.

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
    with torch.inference_mode(False), torch.no_grad(), one_thread(), on_cpu:
        return fit(functions, Samples.of(x, y), a_range, b_range)
