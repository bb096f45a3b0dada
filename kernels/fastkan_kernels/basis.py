"""The description of a layer's features (:class:`Basis`), and the dtypes in which features are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

BASE_FUNCTIONS = ("silu", "gelu", "identity", "none")
MAX_SPLINE_ORDER = 5
# Highest order for which the derivatives of silu and gelu are implemented. All derivatives of the other base functions
# are implemented.
MAX_BASE_DERIVATIVE = 4


class Basis(NamedTuple):
    """The description of a layer's features, which are its B-splines and its base function.

    Args:
        order: the degree k of the splines, 1 to 5 (k=3 is cubic).
        base: the base function, ``"silu"``, ``"gelu"``, ``"identity"`` or ``"none"``. A layer with the base function
            ``"none"`` has no base weights.
        uniform: whether each row of the knots is equally spaced, in which case the cell of an input is computed
            without a search. :func:`basis_of` sets ``uniform`` according to the knots.
        uniform_grid: two numbers, ``(first knot, 1 / spacing)``, if all inputs share one equally spaced row of
            knots, or None otherwise.
        matmul_dtype: the dtype to which features and weights are rounded before a matrix product, as under autocast.
            If ``matmul_dtype`` is None, features and weights are not rounded.

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
        """Return the number of splines on ``grid_size`` intervals, G + k."""
        return grid_size + self.order

    def splines_of(self, knots: torch.Tensor) -> int:
        """Return the number of splines on a knot tensor ``[in, G + 2k + 1]``."""
        return knots.shape[-1] - self.order - 1


# The set of device types that support autocast is computed at import, because the compiler of PyTorch 2.11 cannot trace
# ``is_autocast_available``.
_AUTOCASTING = frozenset(
    name for name in ("cpu", "cuda", "hpu", "mps", "mtia", "xpu") if torch.amp.is_autocast_available(name)
)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Return the dtype of matrix products under autocast on the device of x, or None if autocast is off."""
    device_type = x.device.type
    if device_type in _AUTOCASTING and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def exact_products(x: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context manager that disables autocast, for code that itself rounds to ``Basis.matmul_dtype``."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which features of inputs of ``dtype`` are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
