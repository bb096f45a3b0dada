"""Hostile arguments, and calls of every public function to pass them to; for ``test_arguments``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import sympy
import torch
from torch import nn

import fastkan
import fastkan_kernels as kernels
from fastkan import KAN, KANLinear, symbolic
from fastkan.functional import kan_linear
from fastkan.plotting import plot_history
from fastkan.symbolic import SymbolicEdges

# expressions, evaluated anew for each call
VALUES: dict[str, Callable[[], Any]] = {
    text: functools.partial(eval, text, {"torch": torch, "np": np, "nn": nn})
    for text in (
        "None", '"abc"', '""', '"1"', '"a\\0b"', 'b"abc"', "-1", "0", "1", "7", "1.5", "-0.5", 'float("nan")',
        'float("inf")', '-float("inf")', "2**70", "-(2**70)", "10**400", "1 + 2j", "True", "False", "[]", "[1]",
        "[0, 1]", "[1, 0]", '[float("nan"), 1.0]', "[None]", "[[0]]", '["a", "b"]', "{}", '{"a": 1}', "{0.0, 1.0}",
        "iter([1, 2])", "object()", "int", "len", "nn.ReLU()", "torch.int32", '"cuda:77"', "torch.rand(3)",
        "torch.rand(2, 2)",
        "torch.full((4, 2), torch.nan)", "torch.ones(4, 2, dtype=torch.int64)", "torch.ones(2, dtype=torch.bool)",
        "torch.ones(4, 2, dtype=torch.complex64)", "torch.ones(4, 2, dtype=torch.float16)",
        'torch.ones(4, 2, device="meta")', "torch.eye(2).to_sparse()", "torch.ones(0)", "torch.tensor(2.5)",
        "torch.tensor(1)", "torch.tensor(True)", "torch.tensor(torch.nan)", 'torch.tensor(1.0, device="meta")',
        "torch.tensor(1j)", "np.arange(3.0)", 'np.array(["a", "b"])', "np.array([None, {}], dtype=object)",
        "np.int64(1)", "np.float64(0.5)", "np.bool_(True)", 'np.float32("nan")',
    )
}  # fmt: skip

X, Y = torch.rand(20, 2), torch.rand(20, 1)
KNOTS = kernels.uniform_knots(2, 5, 3)
BASIS = kernels.basis_of(KNOTS, 3)
W, BASE_W, G = torch.rand(8, 2, 3), torch.rand(2, 3), torch.rand(20, 3)
DATA = {"train_input": X, "train_label": Y, "test_input": X, "test_label": Y}
EDGE = {"l": 0, "i": 1, "j": 0}
SPLINE = {"l": 0, "i": 0, "j": 1}
GRID = fastkan.extend_grid(torch.linspace(-1, 1, 6)[None, :], 3)
SYMBOLS = sympy.symbols("a b")
FORMULA = SYMBOLS[0] * SYMBOLS[1]
PRODUCT = {"model": lambda x: x[:, [0]] * x[:, [1]], "x": X}  # a function, and rows to look at it
SERVES = {"x": X, "knots": KNOTS, "weight": W, "base_weight": BASE_W, "basis": BASIS}

FUNCTIONS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "KAN": (KAN, {"width": [2, 1]}),
    "KANLinear": (KANLinear, {"in_features": 2, "out_features": 3}),
    **{
        name: (getattr(fastkan, name), {"in_channels": 2, "out_channels": 4, "kernel_size": 3})
        for name in ("KANConv1d", "KANConv2d", "KANConv3d")
    },
    "KANFeedForward": (fastkan.KANFeedForward, {"d_model": 4}),
    "SymbolicEdges": (SymbolicEdges, {"in_features": 2, "out_features": 3}),
    "create_dataset": (fastkan.create_dataset, {"f": lambda x: x[:, :1], "train_num": 4, "test_num": 4}),
    "create_dataset_from_data": (fastkan.create_dataset_from_data, {"inputs": X, "labels": Y}),
    "backend": (fastkan.backend, {"name": "cpu"}),
    "autotune": (fastkan.autotune, {}),
    "kan_linear": (kan_linear, {"x": X, "spline_weight": W, "base_weight": BASE_W, "knots": KNOTS}),
    "convert_state_dict": (fastkan.convert_state_dict, {"state_dict": {}}),
    "uniform_knots": (kernels.uniform_knots, {"in_features": 2, "grid_size": 5, "order": 3}),
    "knots_are_uniform": (kernels.knots_are_uniform, {"knots": KNOTS}),
    "basis_of": (kernels.basis_of, {"knots": KNOTS, "order": 3}),
    "uniform_basis": (kernels.uniform_basis, {"knots": KNOTS, "order": 3}),
    "contract_out": (kernels.contract_out, SERVES),
    "contract_weight": (kernels.contract_weight, {"x": X, "knots": KNOTS, "g": G, "basis": BASIS}),
    "contract_in": (kernels.contract_in, {**SERVES, "g": G}),
    "edge_std": (kernels.edge_std, SERVES),
    "edge_values": (kernels.edge_values, SERVES),
    "edge_mean_abs": (kernels.edge_mean_abs, SERVES),
    "feature_covariance": (kernels.feature_covariance, {"x": X, "knots": KNOTS, "basis": BASIS}),
    "plot_history": (plot_history, {"model_or_results": [{"train_loss": [0.5, 0.2]}]}),
    "search": (symbolic.search, {"x": X, "y": X, "names": ["x", "exp"]}),
    "fit_params": (symbolic.fit_params, {"x": X[:, 0], "y": X[:, 1], "fun": "exp"}),
    "rank": (symbolic.rank, {"fits": symbolic.search(X, X, ["x", "exp"])}),
    "add_symbolic": (fastkan.add_symbolic, {"name": "hostile", "fun": torch.sin, "overwrite": True}),
    "B_batch": (fastkan.B_batch, {"x": X, "grid": GRID, "k": 3}),
    "extend_grid": (fastkan.extend_grid, {"grid": GRID}),
    "coef2curve": (fastkan.coef2curve, {"x_eval": X, "grid": GRID, "coef": torch.rand(2, 3, 8), "k": 3}),
    "curve2coef": (fastkan.curve2coef, {"x_eval": X, "y_eval": torch.rand(20, 2, 3), "grid": GRID, "k": 3}),
    "batch_jacobian": (fastkan.batch_jacobian, {"func": PRODUCT["model"], "x": X}),
    "batch_hessian": (fastkan.batch_hessian, PRODUCT),
    "get_derivative": (fastkan.get_derivative, {"model": fastkan.MLP([2, 1]), "inputs": X, "labels": Y}),
    "ex_round": (fastkan.ex_round, {"ex1": 1.5 * FORMULA, "n_digit": 2}),
    "augment_input": (fastkan.augment_input, {"orig_vars": SYMBOLS, "aux_vars": [FORMULA], "x": X}),
    "detect_separability": (fastkan.detect_separability, PRODUCT),
    "batch_grad_normgrad": (fastkan.batch_grad_normgrad, {**PRODUCT, "group": [0]}),
    "get_dependence": (fastkan.get_dependence, {**PRODUCT, "group": [0]}),
    "test_symmetry": (fastkan.test_symmetry, {**PRODUCT, "group": [0]}),
    "test_separability": (fastkan.test_separability, {**PRODUCT, "groups": [[0], [1]]}),
    "test_general_separability": (fastkan.test_general_separability, {**PRODUCT, "groups": [[0], [1]]}),
    "test_symmetry_var": (fastkan.test_symmetry_var, {**PRODUCT, "input_vars": SYMBOLS, "symmetry_var": FORMULA}),
    "get_molecule": (fastkan.get_molecule, PRODUCT),
    "get_tree_node": (fastkan.get_tree_node, {**PRODUCT, "moleculess": [[[0], [1]], [[0, 1]]]}),
    "plot_tree": (fastkan.plot_tree, PRODUCT),
    "get_feynman_dataset": (fastkan.get_feynman_dataset, {"name": "test"}),
    "LBFGS": (fastkan.LBFGS, {"params": [nn.Parameter(torch.rand(2))]}),
    "MLP": (fastkan.MLP, {"width": [2, 1]}),
    "MultKAN": (fastkan.MultKAN, {"width": [2, 1]}),
    **{
        name: (getattr(fastkan, name), {"input_variables": SYMBOLS, "expr": FORMULA})
        for name in ("kanpiler", "expr2kan", "sf2kan")
    },
    "remove_symbolic": (symbolic.remove_symbolic, {"name": "hostile"}),
}

# methods of a network, a layer and formulas; what they are called on is made by ``subject``
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "KAN": {
        "forward": {"x": X},
        "speed": {},
        "trace": {"x": X},
        "get_act": {"x": X},
        "get_fun": EDGE,
        "get_range": {**EDGE, "verbose": False},
        "evaluate": {"dataset": DATA},
        "fit": {"dataset": DATA, "steps": 1, "progress": False},
        "attribute": {"x": X},
        "prune": {},
        "prune_node": {},
        "prune_edge": {},
        "prune_input": {},
        "remove_edge": EDGE,
        "remove_node": {"l": 1, "i": 0},
        "refine": {"new_grid": 6},
        "update_grid": {"x": X},
        "update_grid_from_samples": {"x": X},
        "expand_width": {"layer_id": 1, "n_added_nodes": 1},
        "swap": {"l": 0, "i1": 0, "i2": 1},
        "plot": {},
        "plot_edge": EDGE,
        "fix_symbolic": {**SPLINE, "fun_name": "x", "verbose": False},
        "unfix_symbolic": EDGE,
        "set_mode": {**EDGE, "mode": "n"},
        "suggest_symbolic": {**SPLINE, "lib": ["x", "exp"], "verbose": False},
        "auto_symbolic": {"lib": ["x"], "verbose": 0},
        "symbolic_formula": {},
        "formula_latex": {},
        "formula_numpy": {},
        "save": {},
        "load": {},
        "saveckpt": {},
        "loadckpt": {},
        "keep_versions": {},
        "log_history": {},
        "rewind": {"model_id": "0.0"},
        "checkout": {"model_id": "0.0"},
        "get_reg": {},
        "regularization_loss": {},
        "reg": {},
        "feature_interaction": {"l": 1},
        "auto_swap_l": {"l": 1},
        "perturb": {},
        "module": {"start_layer": 0, "chain": "[0]->[0]"},
    },
    "KANLinear": {
        "forward": {"x": X},
        "update_grid": {"x": X},
        "refine": {"grid_size": 7},
        "count_outside": {},
        "set_knots": {"knots": KNOTS},
        "set_mask": {"mask": torch.ones(2, 3)},
        "from_splines": {"knots": KNOTS, "coefficients": W, "base_weight": BASE_W},
        "regularization_loss": {},
    },
    "SymbolicEdges": {
        "forward": {"x": X},
        "values": {"x": X},
        "name": {"i": 1, "j": 0},
        "fix": {"i": 0, "j": 0, "name": "x"},
        "unfix": {"i": 1, "j": 0},
        "subset": {"inputs": [0, 1], "outputs": [0]},
    },
    "module": {
        "replace_linear": {},
        "convert": {},
        "to_efficient_kan_state_dict": {},
        "explain": {"x": X},
        "to_pykan": {},
    },
}


class Call(NamedTuple):
    """One argument of one function, and the hostile value that it gets."""

    function: str
    argument: str
    value: str


def subject(function: str, folder: Any) -> tuple[Any, Callable, dict[str, Any]]:
    """The object that a function is a method of, or None; the function; and arguments that it accepts."""
    kind, _, name = function.rpartition(".")
    if not kind:
        return None, *FUNCTIONS[name]
    arguments = dict(METHODS[kind][name])
    if kind == "KAN":
        model = KAN(width=[2, [1, 1], 1], seed=0)
        model.get_act(X)
        model.update_grid_from_samples(X)
        model.fix_symbolic(**EDGE, fun_name="exp", fit_params_bool=False)
        model.prune(-1.0, -1.0)
        if "formula" in name:
            model.auto_symbolic(lib=["x"], verbose=0, r2_threshold=0)
        if name in ("rewind", "checkout"):
            model.keep_versions()
        if name in ("save", "load", "saveckpt", "loadckpt"):
            arguments["path"] = str(folder / "model.safetensors")
            model.save(arguments["path"])
        return model, getattr(model, name), arguments
    if kind == "KANLinear":
        layer = KANLinear(2, 3)
        return layer, getattr(layer, name), arguments
    if kind == "SymbolicEdges":
        edges = SymbolicEdges(2, 1)
        edges.fix(1, 0, "sin")
        return edges, getattr(edges, name), arguments
    module: nn.Module = nn.Sequential(nn.Linear(2, 3)) if name == "replace_linear" else KANLinear(2, 3)
    first = next(parameters(getattr(fastkan, name)))
    return module, getattr(fastkan, name), {first: module, **arguments}


def names() -> list[str]:
    """Names of all functions."""
    return [*FUNCTIONS, *(f"{kind}.{name}" for kind, methods in METHODS.items() for name in methods)]


def parameters(function: Callable) -> Iterator[str]:
    """Names of a function's parameters without ``self``."""
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            yield name
