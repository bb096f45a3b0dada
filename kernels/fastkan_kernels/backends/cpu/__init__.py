"""F, G and H in plain PyTorch, quick on a CPU: see :mod:`.backend` for the ways that it takes."""

from . import compiled, piecewise
from .backend import contract_in, contract_out, contract_weight, describe, unable
from .dense import all_features

__all__ = [
    "all_features",
    "compiled",
    "contract_in",
    "contract_out",
    "contract_weight",
    "describe",
    "piecewise",
    "unable",
]
