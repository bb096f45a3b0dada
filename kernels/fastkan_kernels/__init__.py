"""The tensor half of fastkan: one trilinear form, its three contractions, and their backends.

It knows tensors only, no modules and no training. The idea is on one page in this folder's README.
"""

from .basis import BASE_FUNCTIONS, MAX_SPLINE_ORDER, Basis
from .contractions import contract_in, contract_out, contract_weight
from .edges import edge_mean_abs, edge_std, edge_values, feature_covariance
from .knots import basis_of, knots_are_uniform, uniform_basis, uniform_knots
from .routing import backend
from .triton.autotune import autotune

__all__ = [
    "BASE_FUNCTIONS",
    "MAX_SPLINE_ORDER",
    "Basis",
    "autotune",
    "backend",
    "basis_of",
    "contract_in",
    "contract_out",
    "contract_weight",
    "edge_mean_abs",
    "edge_std",
    "edge_values",
    "feature_covariance",
    "knots_are_uniform",
    "uniform_basis",
    "uniform_knots",
]
