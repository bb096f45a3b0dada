"""The functions and classes that pykan has in addition to its network, under the names that they have in pykan.

Replace ``from kan.utils import ex_round`` by ``from fastkan import ex_round``, and replace other imports accordingly.
The following names are available.

- Formulas. ``kanpiler`` (also ``expr2kan``, ``sf2kan``) compiles a formula into a network, ``get_feynman_dataset``
  looks up a formula, ``ex_round`` rounds the numbers in a formula, ``augment_input`` adds columns that are computed by
  formulas, and ``fit_params`` fits a single function.
- Derivatives are computed by ``batch_jacobian``, ``batch_hessian``, ``get_derivative`` and ``model2param``.
- The structure of a function is tested or drawn by ``detect_separability``, ``test_separability``,
  ``test_general_separability``, ``test_symmetry``, ``test_symmetry_var``, ``get_dependence``, ``batch_grad_normgrad``,
  ``plot_tree``, ``get_molecule`` and ``get_tree_node``.
- Splines are computed by ``B_batch``, ``coef2curve``, ``curve2coef`` and ``extend_grid``.
- ``LBFGS`` is an optimizer for training, and ``MLP`` is a network for comparison.
"""

from ...plotting.tree import get_molecule, get_tree_node, plot_tree
from ...symbolic.derivatives import batch_hessian, batch_jacobian, get_derivative, model2param
from ...symbolic.hypothesis import (
    batch_grad_normgrad,
    detect_separability,
    get_dependence,
    test_general_separability,
    test_separability,
    test_symmetry,
    test_symmetry_var,
)
from ...symbolic.variables import augment_input, ex_round
from .compiler import expr2kan, kanpiler, sf2kan
from .feynman import get_feynman_dataset
from .fitting import fit_params
from .mlp import MLP
from .optimizer import LBFGS
from .splines import B_batch, coef2curve, curve2coef, extend_grid

__all__ = [
    "LBFGS", "MLP", "B_batch", "augment_input", "batch_grad_normgrad", "batch_hessian", "batch_jacobian", "coef2curve",
    "curve2coef", "detect_separability", "ex_round", "expr2kan", "extend_grid", "fit_params", "get_dependence",
    "get_derivative", "get_feynman_dataset", "get_molecule", "get_tree_node", "kanpiler", "model2param", "plot_tree",
    "sf2kan", "test_general_separability", "test_separability", "test_symmetry", "test_symmetry_var",
]  # fmt: skip
