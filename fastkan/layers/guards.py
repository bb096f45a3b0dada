"""Guards: z to the nearest place that is in the domain and where ``|f| <= y_th`` near a singularity.

Where a derivative is infinite at an end of the domain, a guard stays off that end by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Guard = Callable[[Tensor, float], Tensor]


def off_zero(power: float) -> Guard:
    def guard(z: Tensor, y_th: float) -> Tensor:
        least = y_th ** (-1 / power)
        return torch.where(z.abs() < least, torch.copysign(torch.full_like(z, least), z), z)

    return guard


def positive(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=torch.finfo(z.dtype).eps)  # at 0 itself derivatives are infinite


def inverse_root(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=y_th**-2)


def log(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(min=max(math.exp(-y_th), torch.finfo(z.dtype).tiny))


def exp(z: Tensor, y_th: float) -> Tensor:
    return z.clamp(max=math.log(y_th))


def cosh(z: Tensor, y_th: float) -> Tensor:
    most = math.acosh(max(y_th, 1.0))
    return z.clamp(-most, most)


def sinh(z: Tensor, y_th: float) -> Tensor:
    most = math.asinh(y_th)
    return z.clamp(-most, most)


def tan(z: Tensor, y_th: float) -> Tensor:
    most = math.atan(y_th)
    inner = z - math.pi * torch.round(z / math.pi)
    return z + (inner.clamp(-most, most) - inner)


def unit(z: Tensor, y_th: float) -> Tensor:
    most = 1 - torch.finfo(z.dtype).eps
    return z.clamp(-most, most)


def arctanh(z: Tensor, y_th: float) -> Tensor:
    most = min(math.tanh(y_th), 1 - torch.finfo(z.dtype).eps)
    return z.clamp(-most, most)
