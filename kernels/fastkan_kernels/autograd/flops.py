"""Numbers of floating-point operations for PyTorch's ``FlopCounterMode``.

A contraction counts as the dense matrix product of the features with the weights, ``2 N I O (G + k + 1)`` operations
for N rows, I inputs and O outputs, whatever algorithm computes it; without a base function, as ``2 N I O (G + k)``. A
contraction of a convolution counts as PyTorch counts the convolution of features, ``2 N P C O T / groups (G + k + 1)``
operations for N images of C channels, O output channels of P pixels each, and T taps of the kernel. The evaluation of
the features does not count, because the counter ignores element-wise operations.

The counter sees only registered operators. While a counter is active, the contractions therefore run as operators. A
backward pass is counted in full if its forward pass ran under the counter, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..backends.convolution import Window
from ..backends.modes import count_dispatch_modes
from .operators import OPERATORS

MODULE = "torch.utils.flop_counter"  # The module is not imported here, because its import takes long.


def is_counting() -> bool:
    """Whether a ``FlopCounterMode`` is active. If it is, the formulas are added to its registry."""
    module = sys.modules.get(MODULE)
    if module is None or count_dispatch_modes() == 0:
        return False
    modes = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, module._FlopCounterMode)]
    for mode in modes:
        mode.counter.flop_registry.update(FORMULAS)
    return bool(modes)


def _count(x: Any, outputs: int, splines: int, base: str, window: Sequence[int] | None) -> int:
    """Return the count for the ``outputs`` of an input, which are ``O / groups * taps`` in a convolution."""
    rows = len(x) if window is None else len(x) * math.prod(Window.from_flat(window).out_size(x.shape[2:]))
    return 2 * rows * x.shape[1] * outputs * (splines + (base != "none"))


# The last of the operators' positional arguments is the window; see the schemas in ``operators``.
def _contract_out(x: Any, knots: Any, v: Any, weight: Any, base_weight: Any, order: int, base: str, *rest, **_) -> int:
    return _count(x, weight.shape[2], len(weight), base, rest[-1])


def _contract_weight(x: Any, knots: Any, v: Any, g: Any, order: int, base: str, *rest, **_) -> int:
    outputs, window = g.shape[1], rest[-1]
    if window is not None:
        geometry = Window.from_flat(window)
        outputs = outputs // geometry.groups * geometry.taps
    return _count(x, outputs, knots.shape[1] - order - 1, base, window)


def _contract_in(x: Any, knots: Any, weight: Any, base_weight: Any, g: Any, order: int, base: str, *rest, **_) -> int:
    return _count(x, weight.shape[2], len(weight), base, rest[-1])


FORMULAS = {
    OPERATORS[name]._opoverload._overloadpacket: formula
    for name, formula in {"F": _contract_out, "G": _contract_weight, "H": _contract_in}.items()
}
