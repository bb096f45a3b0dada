"""What pykan gives beside its network, by pykan's names: thin functions on what is here.

``from kan.utils import ex_round`` becomes ``from fastkan import ex_round``, and so with the others.
"""

from ...plotting.tree import get_molecule, get_tree_node, plot_tree
from ...symbolic.derivatives import batch_hessian, batch_jacobian, fit_params, get_derivative, model2param
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
from .mlp import MLP
from .optimizer import LBFGS
from .splines import B_batch, coef2curve, curve2coef, extend_grid

__all__ = [
    "LBFGS",
    "MLP",
    "B_batch",
    "augment_input",
    "batch_grad_normgrad",
    "batch_hessian",
    "batch_jacobian",
    "coef2curve",
    "curve2coef",
    "detect_separability",
    "ex_round",
    "expr2kan",
    "extend_grid",
    "fit_params",
    "get_dependence",
    "get_derivative",
    "get_feynman_dataset",
    "get_molecule",
    "get_tree_node",
    "kanpiler",
    "model2param",
    "plot_tree",
    "sf2kan",
    "test_general_separability",
    "test_separability",
    "test_symmetry",
    "test_symmetry_var",
]
