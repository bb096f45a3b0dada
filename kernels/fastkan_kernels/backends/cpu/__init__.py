"""F, G and H in plain PyTorch, quick on a CPU: see :mod:`.contract` for the two ways it takes."""

from . import lowered, piecewise
from .backend import contract_in, contract_out, contract_weight, describe, unable
from .blocks import all_features

__all__ = [
    "all_features",
    "contract_in",
    "contract_out",
    "contract_weight",
    "describe",
    "lowered",
    "piecewise",
    "unable",
]
