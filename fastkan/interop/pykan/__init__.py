"""Functions and classes that pykan offers beside its network, under pykan's names.

``from kan.utils import ex_round`` becomes ``from fastkan import ex_round``, and likewise for all others:

- formulas: ``kanpiler`` (also ``expr2kan``, ``sf2kan``) compiles one into a network, ``get_feynman_dataset`` looks one
  up, ``ex_round`` rounds one, ``augment_input`` adds columns computed by some, ``fit_params`` fits a single function
- derivatives: ``batch_jacobian``, ``batch_hessian``, ``get_derivative``, ``model2param``
- structure of a function: ``detect_separability``, ``test_separability``, ``test_general_separability``,
  ``test_symmetry``, ``test_symmetry_var``, ``get_dependence``, ``batch_grad_normgrad``, ``plot_tree``,
  ``get_molecule``, ``get_tree_node``
- splines: ``B_batch``, ``coef2curve``, ``curve2coef``, ``extend_grid``
- training: ``LBFGS``, and ``MLP`` for comparison
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
