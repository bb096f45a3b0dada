"""Spline contractions on tensors, on which the layers of fastkan are built; no modules and no training.

fastkan imports from here alone:

- contractions: ``contract_out`` (F, the forward of a layer), ``contract_weight`` (G) and ``contract_in`` (H), or
  ``contract`` on an ``Operands``, with ``backend`` and ``route`` for the choice of a backend and ``autotune`` for
  tuning the Triton kernels;
- features: ``Basis``, the knots (``uniform_knots``, ``knots_are_uniform``, ``basis_of``, ``uniform_basis``), and their
  values (``splines``, ``base_function``, ``pieces_of``);
- statistics of edges: ``edge_std``, ``edge_mean_abs``, ``edge_values`` and ``feature_covariance``;
- several layers of few edges as one differentiable function: ``fused_stack`` and its types;
- validation of arguments: the decorator ``checked``, its kinds of arguments such as ``Int``, and functions ``check_*``.

The README in this folder explains the idea on one page.
"""

from . import validation
from .autograd.dispatch import backend, contract, needs_composite, route
from .backends.cpu.stack import FusedStack, LayerStd, StackCache, StackLayer, fold_scale_and_mask
from .backends.modes import has_values, needs_graph
from .backends.registry import BACKENDS, ContractionSpec
from .backends.triton.tuning.autotune import autotune
from .basis import BASE_FUNCTIONS, MAX_SPLINE_ORDER, Basis, autocast_dtype, exact_products, working_dtype
from .bspline.cox_de_boor import MAX_BASE_DERIVATIVE, base_function, round_weights, splines
from .bspline.piecewise import Pieces, pieces_of
from .contractions import contract_in, contract_out, contract_weight, fused_stack, supports_stack
from .knots import basis_of, knots_are_uniform, uniform_basis, uniform_knots
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
    warn,
)  # fmt: skip

# The public names. Modules of fastkan import the others here too, which may change with any version.
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
