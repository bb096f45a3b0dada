"""The closed form by PyTorch's compiler: one pass over memory instead of nine.

For callers that are under ``torch.compile`` themselves, and so have a compiler and wait for it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline import cardinal
from ...knots import uniform_grid


class ClosedForm:
    """psi^(d) of uniform knots, d < k, of blocks of rows and splines.

    Args:
        like: an ``[N, I]`` of the blocks' dtype.
    """

    def __init__(self, like: Tensor, knots: Tensor, basis: Basis, derivative: int):
        first, rate = uniform_grid(knots, basis)
        scale = rate**derivative * cardinal.scale(basis.order, derivative)
        self._constants = [
            torch.as_tensor(number, dtype=like.dtype, device=like.device).expand(like.shape[1]).contiguous()
            for number in (first, rate, scale)
        ]
        self._which = f"{basis.order}{derivative}"  # a str, since the compiler would make symbols of numbers

    def write(self, x: Tensor, middles: Tensor, out: Tensor) -> None:
        """``out [rows, splines, I]``, from ``x [rows, I]`` and the splines' middles."""
        with torch.no_grad():
            _compiled(_write)(x, *self._constants, middles, self._which, out)

    def dot(self, x: Tensor, middles: Tensor, products: Tensor) -> Tensor:
        """``(products * psi^(d)).sum(1)``, ``[rows, I]``, without psi in memory."""
        with torch.no_grad():
            return _compiled(_dot)(x, *self._constants, middles, self._which, products)


def works() -> bool:
    """Whether there is a working compiler; if there is none it warns, once."""
    return _works()


def _psi(x: Tensor, first: Tensor, rate: Tensor, scale: Tensor, middles: Tensor, which: str) -> Tensor:
    order, derivative = int(which[0]), int(which[1])
    z = ((x - first) * rate).unsqueeze(1) - middles.unsqueeze(1)
    return cardinal.spline(z, order, derivative) * scale


def _write(x, first, rate, scale, middles, which, out) -> None:
    out.copy_(_psi(x, first, rate, scale, middles, which))


def _dot(x, first, rate, scale, middles, which, products) -> Tensor:
    return (products * _psi(x, first, rate, scale, middles, which)).sum(1)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True, fullgraph=True)


@functools.cache
def _works() -> bool:
    cpu = torch.device("cpu")  # whatever the default is
    row, room = torch.zeros(3, device=cpu), torch.empty(4, 5, 3, device=cpu)
    try:
        with torch.no_grad():
            _compiled(_write)(torch.zeros(4, 3, device=cpu), row, row, row, torch.zeros(5, device=cpu), "10", room)
    except Exception as error:  # whatever a missing or broken compiler raises
        warnings.warn(f"fastkan makes its features uncompiled, since compiling them failed: {error}", stacklevel=3)
        return False
    return True
