"""The class ``KAN``, a network that has the steps of the workflow as methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import FLAG, ORDER, REAL
from fastkan_kernels import validation as kinds

from .. import plotting
from ..functional import OUTSIDE
from ..layers.grid import MARGIN
from ..layers.init import Initialization
from ..layers.linear import KANLinear
from ..network import attribution, checkpoint, edit
from ..network import prune as pruning
from ..network import refine as refining
from ..network import trace as tracing
from ..network.architecture import architecture, for_each_layer, single_if_equal
from ..network.core import Network
from ..symbolic import auto, fix
from ..symbolic import formula as formulas
from ..training import fit as fitting
from .old_arguments import BaseFunction, check_unused, method
from .pykan_methods import PykanMethods
from .versions import Versions

BASES = {"silu": "silu", "gelu": "gelu", "identity": "identity", "zero": "none", "none": "none"}


class KAN(PykanMethods, Network):
    """A Kolmogorov-Arnold network (Liu et al., 2024) with optional multiplication nodes (KAN 2.0, 2024).

    Each edge is either a spline plus a base function, or a formula c f(a x + b) + d. Each node is either the sum of its
    incoming edges or a product of several subnodes, where a subnode is a sum of edges. The names of arguments and
    methods are taken from pykan. No global state is changed: no global random number generator is seeded, and no
    argument is modified.

    Args:
        width: the number of nodes of each layer, starting with the inputs. The entry of a layer that has multiplication
            nodes is a list ``[sums, multiplications]``.
        grid: the number of intervals G of the splines' grids, either one int for all layers or a list of one int for
            each layer.
        k: the order of the splines, 1 to 5, either one int for all layers or a list of one int for each layer.
        mult_arity: the number of factors of the multiplication nodes, either one int for all nodes or, for each layer,
            a list of one int for each multiplication node.
        noise_scale: the scale of the initial values of the splines.
        scale_base_mu, scale_base_sigma: the mean and the half width of the uniform distribution from which the initial
            weights of the base functions are drawn. The mean and the half width are multiplied by
            1 / sqrt(inputs of the layer).
        base_fun: the base function, ``"silu"``, ``"gelu"``, ``"identity"`` or ``"zero"``.
        affine_trainable: whether the scales and biases of nodes and subnodes are trained.
        grid_eps: a number from 0 to 1 that controls where grid updates place knots. With ``grid_eps=1``, the knots are
            spaced evenly over the range of the samples. With ``grid_eps=0``, the knots are quantiles of the samples.
        grid_range: the lower and the upper end of the initial grids.
        sp_trainable: whether the scales of the splines are trained.
        sb_trainable: whether the weights of the base functions are trained.
        seed: the seed of the initial parameters, and of those that a fit tries when it is stuck or searches for a
            sparser network. If ``seed`` is None, torch's global generator is used.
        sparse_init: whether initially each node is connected only to the nearest node on the other side.
        device, dtype: the device and the dtype of the parameters.
        outside: the continuation of each spline outside of its grid, ``"zero"`` or ``"linear"``. With ``"linear"``,
            splines are continued along their tangents, as in :class:`KANLinear`.
        grid_margin: the distance by which the evenly spaced part of an updated grid extends beyond the samples at each
            end, as a fraction of their range. Values of hidden nodes for new rows often lie beyond those of the
            samples. With ``grid_margin=0.05`` and ``grid_eps=1``, the outermost polynomials of the splines extend to
            most of these values, which is more accurate for smooth functions without noise.
        auto_save: whether a version of the network is kept in memory after each method of the workflow, for
            :meth:`rewind` and :meth:`checkout`.

    Attributes:
        layers: one :class:`KANLinear` for each layer, with the splines and the base functions.
        symbolic: one :class:`SymbolicEdges` for each layer, with the formulas.
        node_scale, node_bias, subnode_scale, subnode_bias: for each layer, the scales and biases of the nodes and
            subnodes at the outputs of the layer.
        input_id: the columns of x that the network reads, a tensor ``[in]``.
        sample: a copy of at most 10,000 rows of the data of the last :meth:`fit` or :meth:`get_act`, or None. The copy
            is not pickled.
        history: the results of every call of :meth:`fit`.
        architecture: the numbers of nodes, subnodes and factors of each layer.
        in_features: the number of columns of x. The network may read only some of the columns of x.
        prune_mask: for each layer, the mask ``[in, out]`` of the edges that the last :meth:`prune` kept, or None.
        versions: the versions kept in memory, or None; see :meth:`keep_versions`.

    Raises:
        TypeError, ValueError: if arguments are out of range or inconsistent.

    Example:
        >>> model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)
        >>> model(torch.rand(100, 2)).shape
        torch.Size([100, 1])
    """

    @kinds.checked(
        grid=kinds.OneOrEach(kinds.Int(least=1)), k=kinds.OneOrEach(ORDER), noise_scale=REAL, scale_base_mu=REAL,
        scale_base_sigma=REAL, base_fun=BaseFunction(BASES), outside=OUTSIDE, affine_trainable=FLAG,
        grid_eps=kinds.SHARE, grid_margin=kinds.SHARE, grid_range=kinds.Bounds(), sp_trainable=FLAG, sb_trainable=FLAG,
        seed=kinds.SEED, sparse_init=FLAG, device=kinds.DEVICE, dtype=kinds.DTYPE, auto_save=FLAG,
    )  # fmt: skip
    def __init__(
        self,
        width: Sequence[int | Sequence[int]],
        grid: int | Sequence[int] = 3,
        k: int | Sequence[int] = 3,
        mult_arity: int | Sequence[Sequence[int]] = 2,
        noise_scale: float = 0.3,
        scale_base_mu: float = 0.0,
        scale_base_sigma: float = 1.0,
        base_fun: str = "silu",
        affine_trainable: bool = False,
        grid_eps: float = 0.02,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        sp_trainable: bool = True,
        sb_trainable: bool = True,
        seed: int | None = 1,
        sparse_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        outside: str = "zero",
        grid_margin: float = MARGIN,
        auto_save: bool = False,
        **unused: Any,
    ) -> None:
        check_unused("KAN", unused)
        structure = architecture(width, mult_arity)
        sizes = for_each_layer("grid", grid, structure.depth)
        orders = for_each_layer("k", k, structure.depth)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        layers = []
        for inputs, outputs, size, order in zip(structure.nodes, structure.subnodes[1:], sizes, orders):
            with torch.random.fork_rng(devices=[]):  # the initial parameters drawn by KANLinear are replaced below
                layer = KANLinear(
                    inputs, outputs, size, order,
                    grid_range=grid_range, base=BASES[base_fun], spline_scale=True, outside=outside, dtype=dtype,
                ).to(device)  # fmt: skip
            layer.get_parameter("spline_scale").requires_grad_(sp_trainable)
            if layer.base_weight is not None:
                layer.base_weight.requires_grad_(sb_trainable)
            layers.append(layer)
        initialization = Initialization(noise_scale, scale_base_mu, scale_base_sigma, unit_scale=False)
        super().__init__(structure, layers, affine_trainable, grid_eps, initialization, seed, sparse_init, grid_margin)
        self.reset_parameters()
        self.keep_versions(auto_save)

    versions: Versions | None = None

    # -- the workflow ------------------------------------------------------------------------------

    @kinds.checked(compile=FLAG)
    def speed(self, compile: bool = False) -> KAN:
        """Return the model, compiled by ``torch.compile`` if ``compile`` is True.

        The method ``speed`` of pykan disables the evaluation of formulas. In fastkan, formulas are evaluated only for
        edges that have one, so there is nothing to disable.
        """
        return torch.compile(self) if compile else self  # type: ignore[return-value]

    def train(self, mode: Any = True, *args: Any, **options: Any) -> Any:
        """Set the training mode, as in ``nn.Module``, or call :meth:`fit` if the argument is a dataset.

        The first version of pykan used the name ``train`` for the method that fits a model to a dataset.
        """
        if isinstance(kinds.plain(mode), int):
            return super().train(FLAG.read("mode", mode))
        return self.fit(mode, *args, **options)

    @kinds.checked(regularize_activation=REAL, regularize_entropy=REAL)
    def regularization_loss(self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0) -> Tensor:
        """Return efficient-kan's penalty on the spline coefficients, the sum of
        :meth:`KANLinear.regularization_loss` over the layers.

        Training loops that were written for efficient-kan add it to the loss. The penalty that :meth:`fit` adds, on the
        values of the edges, is :meth:`get_reg`.

        Example:
            >>> bool(KAN([2, 5, 1], seed=0).regularization_loss(1.0, 0.0) > 0)
            True
        """
        return torch.stack(
            [each.regularization_loss(regularize_activation, regularize_entropy) for each in self.layers]
        ).sum()

    # The methods below are functions of other modules. The first parameter of each function is the model.
    predict = tracing.predict
    trace = tracing.trace
    get_act = tracing.get_act
    get_fun = tracing.get_fun
    get_range = tracing.get_range
    evaluate = fitting.evaluate

    fit = method(fitting.fit)

    attribute = method(attribution.attribute, makes_version=False)
    feature_score = property(attribution.feature_score)

    prune = method(pruning.prune)
    prune_node = method(pruning.prune_node)
    prune_edge = method(pruning.prune_edge)
    prune_input = method(pruning.prune_input)
    remove_edge = method(pruning.remove_edge)
    remove_node = method(pruning.remove_node)

    refine = method(refining.refine)
    update_grid_from_samples = refining.update_grid_from_samples
    update_grid = refining.update_grid_from_samples
    expand_width = method(edit.expand_width)
    expand_depth = method(edit.expand_depth)
    swap = method(edit.swap)

    plot = method(plotting.plot, makes_version=False)
    plot_edge = plotting.plot_edge
    plot_history = plotting.plot_history

    fix_symbolic = method(fix.fix_symbolic)
    unfix_symbolic = method(fix.unfix_symbolic)
    unfix_symbolic_all = method(fix.unfix_symbolic_all)
    set_mode = method(fix.set_mode)
    suggest_symbolic = fix.suggest_symbolic
    auto_symbolic = method(auto.auto_symbolic)
    symbolic_formula = method(formulas.symbolic_formula, makes_version=False)
    formula_latex = formulas.formula_latex
    formula_numpy = formulas.formula_numpy

    save = checkpoint.save
    load: Any = classmethod(checkpoint.load)

    def __repr__(self) -> str:
        width: list[Any] = [added if not multiplied else [added, multiplied] for added, multiplied in self.width]
        parts = [f"width={width}", f"grid={single_if_equal(self.grid)}", f"k={single_if_equal(self.k)}"]
        if any(self.architecture.arities):
            parts.append(f"mult_arity={self.mult_arity}")
        base = self.layers[0].base
        if base != "silu":
            parts.append("base_fun=" + repr("zero" if base == "none" else base))
        if self.layers[0].outside != "zero":
            parts.append(f"outside={self.layers[0].outside!r}")
        symbolic = sum(len(layer.edges) for layer in self.symbolic)
        return f"KAN({', '.join(parts)})" + (f", {symbolic} edges symbolic" if symbolic else "")
