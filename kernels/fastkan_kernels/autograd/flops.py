"""Numbers of floating-point operations for PyTorch's ``FlopCounterMode``.

A contraction counts as the dense matrix product of the features with the weights, ``2 N I O (G + k + 1)`` operations
for N rows, I inputs and O outputs, whatever algorithm computes it; without a base function, as ``2 N I O (G + k)``. The
evaluation of the features does not count, because the counter ignores element-wise operations.

The counter sees only registered operators. While a counter is active, the contractions therefore run as operators. A
backward pass is counted in full if its forward pass ran under the counter, too.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

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


def _count(rows: int, outputs: int, inputs: int, splines: int, base: str) -> int:
    return 2 * rows * inputs * outputs * (splines + (base != "none"))


def _contract_out(x: Any, knots: Any, v: Any, weight: Any, base_weight: Any, order: int, base: str, *_, **__) -> int:
    return _count(len(x), weight.shape[2], x.shape[1], len(weight), base)


def _contract_weight(x: Any, knots: Any, v: Any, g: Any, order: int, base: str, *_, **__) -> int:
    return _count(len(x), g.shape[1], x.shape[1], knots.shape[1] - order - 1, base)


def _contract_in(x: Any, knots: Any, weight: Any, base_weight: Any, g: Any, order: int, base: str, *_, **__) -> int:
    return _count(len(x), weight.shape[2], x.shape[1], len(weight), base)


FORMULAS = {
    OPERATORS[name]._opoverload._overloadpacket: formula
    for name, formula in {"F": _contract_out, "G": _contract_weight, "H": _contract_in}.items()
}
