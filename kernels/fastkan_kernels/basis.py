"""The basis of a layer, which says what its features are, and the dtypes that features are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

BASE_FUNCTIONS = ("silu", "identity", "none")
MAX_SPLINE_ORDER = 5
MAX_BASE_DERIVATIVE = 4  # of silu, whose derivatives are written out; the other base functions have every derivative


class Basis(NamedTuple):
    """The features of a layer: its B-splines and, as one more, its base function.

    Args:
        order: degree k of the splines, 1 to 5 (k=3 is cubic).
        base: ``"silu"``, ``"identity"`` or ``"none"`` (then there is no base weight).
        uniform: whether each row of the knots is equally spaced, so that the cell of an input is found without
            a search. :func:`basis_of` finds it out from the knots.
        uniform_grid: ``(first knot, 1 / spacing)`` as two numbers if all inputs share one equally spaced row of
            knots; else None.
        matmul_dtype: dtype to which features and weights are rounded before they are multiplied, as autocast
            does; None if neither is rounded.

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


# Computed at import, since the compiler of PyTorch 2.11 cannot trace is_autocast_available.
_AUTOCASTING = frozenset(
    name for name in ("cpu", "cuda", "hpu", "mps", "mtia", "xpu") if torch.amp.is_autocast_available(name)
)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype of matrix products under autocast on x's device, or None if autocast is off there."""
    device_type = x.device.type
    if device_type in _AUTOCASTING and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def exact_products(x: torch.Tensor) -> AbstractContextManager[None]:
    """A context without autocast, for code that rounds to ``Basis.matmul_dtype`` itself."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the features of an x of ``dtype`` are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
