"""What the features of a layer are: the part of T_d that is fixed when a kernel is compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

BASE_FUNCTIONS = ("silu", "identity", "none")
MAX_SPLINE_ORDER = 5
MAX_BASE_DERIVATIVE = 4  # of silu, in closed form; the other bases have every derivative


class Basis(NamedTuple):
    """The features of a layer: its B-splines and, as one more, its base function.

    Args:
        order: degree k of the splines, 1 to 5 (k=3 is cubic).
        base: ``"silu"``, ``"identity"`` or ``"none"`` (then there is no base weight).
        uniform: whether each row of the knots is equally spaced; a uniform basis needs no search for
            the cell of an input. :func:`basis_of` looks.
        uniform_grid: ``(first knot, cells per unit length)`` where all inputs share one uniform row of
            knots, which makes them numbers instead of tensors; else None.
        matmul_dtype: the dtype to which features and weights are rounded where they are multiplied
            (set under autocast), or None to round neither.

    Example:
        >>> Basis(order=3).features(grid_size=5)
        8
    """

    order: int
    base: str = "silu"
    uniform: bool = False
    uniform_grid: tuple[float, float] | None = None
    matmul_dtype: torch.dtype | None = None

    def features(self, grid_size: int) -> int:
        """Number of splines on ``grid_size`` intervals, G + k."""
        return grid_size + self.order

    def splines_of(self, knots: torch.Tensor) -> int:
        """Number of splines on a knot tensor ``[in, G + 2k + 1]``."""
        return knots.shape[-1] - self.order - 1


# asked once: PyTorch 2.11's compiler can't trace the question
_AUTOCASTING = frozenset(
    name for name in ("cpu", "cuda", "hpu", "mps", "mtia", "xpu") if torch.amp.is_autocast_available(name)
)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Under autocast, the dtype of its products; else None."""
    device_type = x.device.type
    if device_type in _AUTOCASTING and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def exact_products(x: torch.Tensor) -> AbstractContextManager[None]:
    """Hold autocast off: here it is known where to round."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which psi is made: float64 stays, everything narrower becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
