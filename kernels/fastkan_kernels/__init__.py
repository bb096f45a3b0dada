"""Spline contractions of tensors, from which the layers of fastkan are built. The package has no ``nn.Module``.

The package ``fastkan`` imports only the names in this module:

- The contractions are ``contract_out`` (F, the forward pass of a layer), ``contract_weight`` (G) and ``contract_in``
  (H). ``contract`` computes any contraction from an ``Operands``. ``backend`` selects a backend, ``route`` reports the
  backend that a call would use, and ``autotune`` tunes the Triton kernels.
- The features of a layer are described by ``Basis`` and by the knots (``uniform_knots``, ``knots_are_uniform``,
  ``basis_of``, ``uniform_basis``). The values of the features are computed by ``splines`` and ``base_function``.
- Exact Jacobians of row-wise functions, such as the residuals of a fit, are computed inside a ``record_rows`` block and
  returned as a ``RowJacobian``.
- Statistics of edge functions are computed by ``edge_std``, ``edge_mean_abs``, ``edge_values`` and
  ``feature_covariance``.
- ``fused_stack`` evaluates several layers that have few edges as one differentiable function.
- Arguments are validated by the decorator ``checked``, with an argument kind such as ``Int`` for each argument, and by
  the functions ``check_*``.

The README in this folder explains the mathematical idea on one page.
"""

from . import validation
from .autograd.dispatch import backend, contract, needs_composite, route
from .backends.convolution import Window
from .backends.cpu.stack import FusedStack, LayerStd, StackCache, StackLayer, fold_scale_and_mask
from .backends.modes import has_values, needs_graph
from .backends.registry import BACKENDS
from .backends.triton.selection import autotune
from .basis import BASE_FUNCTIONS, MAX_SPLINE_ORDER, Basis, autocast_dtype, exact_products, working_dtype
from .bspline.cox_de_boor import MAX_BASE_DERIVATIVE, base_function, round_weights, splines
from .bspline.piecewise import Pieces, pieces_of
from .contractions import contract_in, contract_out, contract_weight, fused_stack, supports_stack
from .knots import basis_of, knots_are_uniform, uniform_basis, uniform_knots
from .row_jacobian import RowJacobian, check_residuals, record_rows, recorder
from .statistics import column_std, edge_mean_abs, edge_std, edge_values, feature_covariance, spline_values
from .trilinear import Operands
from .validation import (
    BASE,
    DEVICE,
    DTYPE,
    FLAG,
    INDEX,
    ORDER,
    REAL,
    SEED,
    SHARE,
    Bounds,
    Callback,
    Choice,
    Each,
    Flag,
    Instance,
    Int,
    Kind,
    OneOrEach,
    Optional,
    Path,
    Real,
    Text,
    check_alike,
    check_dtype,
    check_finite,
    check_int,
    check_knots,
    check_shape,
    check_tensor,
    check_weights,
    checked,
    is_sequence,
    kind_of,
    plain,
    repr_with_shapes,
    warn,
)  # fmt: skip

# ``__all__`` contains the public names. fastkan also imports names that are not in ``__all__``; any release may change
# the names that are not in ``__all__``.
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
    "record_rows",
    "uniform_basis",
    "uniform_knots",
]
