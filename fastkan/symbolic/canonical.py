"""Of all ``c f(a x + b) + d`` that are the same function, the one that reads best."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers.function_library import SymbolicFunction

SHORT, LONG = 1e-3, 1e4


def solved(function: SymbolicFunction, a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The best c and d for given a and b ``[E]`` and samples ``[E, N]``.

    Returns:
        ``[E, 4]`` and R2 ``[E]``, -inf where f has no finite values or does not vary.
    """
    f = function.fun(torch.addcmul(b.unsqueeze(1), a.unsqueeze(1), x))
    size = f.abs().amax(1)
    f_mean, y_mean = f.mean(1), y.mean(1)
    f, centred = f - f_mean.unsqueeze(1), y - y_mean.unsqueeze(1)
    norm = f.square().mean(1)
    c = (f * centred).mean(1) / norm
    unexplained = (centred - c.unsqueeze(1) * f).square().mean(1) / centred.square().mean(1)
    affine = torch.stack([a, b, c, y_mean - c * f_mean], 1)
    usable = (norm > (1e-14 * size).square()) & (affine.abs() < 1e30).all(1) & unexplained.isfinite()
    return affine, torch.where(usable, (1 - unexplained).clamp(min=0.0), -torch.inf)


def canonical(function: SymbolicFunction, a: Tensor, b: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """The a and b that read best, where c and d make up for the rest: ``|a| = 1`` where a factor counts for
    nothing, else a > 0 where the sign counts for nothing, and b within half a turn of 0.

    Args:
        span: ``[E]``, the width of x's range. Where that is far from 1, so would c be from all numbers: a
            stays as it is.
    """
    if function.scale is not None:
        factor = torch.where((span > SHORT) & (span < LONG), a.abs(), 1.0)
        a, b = a / factor, b / factor
    if function.symmetry is not None:
        b = torch.where(a < 0, -b, b)
        a = a.abs()
    if function.period is not None:
        turn = function.period / 2 if function.antiperiodic else function.period
        b = b - turn * torch.round(b / turn)
    return a, b


def unit_factor(function: SymbolicFunction, affine: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where b makes up for c, ``|c| = 1``: constants add up in the argument."""
    if function.shift != "c" or function.scale is not None:
        return affine
    a, b, c, _ = affine.unbind(1)
    b = b + c.abs().log()
    f = function.fun(torch.addcmul(b.unsqueeze(1), a.unsqueeze(1), x))
    new = torch.stack([a, b, c.sign(), y.mean(1) - c.sign() * f.mean(1)], 1)
    return torch.where((c != 0).unsqueeze(1) & new.isfinite().all(1, keepdim=True), new, affine)


def derived(function: SymbolicFunction, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """From a and b of the function that it is the same as."""
    assert function.same_as is not None
    inner, offset, _, _ = function.same_as[1]
    return a / inner, (b - offset) / inner
