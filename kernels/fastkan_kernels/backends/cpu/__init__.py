"""The CPU backend, which computes F, G and H by PyTorch operations; :mod:`.backend` describes its algorithms."""

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
