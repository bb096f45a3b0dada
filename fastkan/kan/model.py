"""``KAN``: the class that puts the functions of the workflow on a network as methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastkan_kernels import FLAG, ORDER, REAL
from fastkan_kernels import validation as kinds

from .. import plotting
from ..functional import OUTSIDE
from ..layers.init import nearest_node_mask, reinitialize
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

BASES = {"silu": "silu", "identity": "identity", "zero": "none", "none": "none"}


class KAN(PykanMethods, Network):
    """A Kolmogorov-Arnold network (Liu et al., 2024; with multiplication nodes as in KAN 2.0, 2024).

    Each edge is a spline plus a base function, or a formula c f(a x + b) + d. Each node is the sum of its edges, or the
    product of several such sums, which are called subnodes. The names of arguments and methods are pykan's. No global
    state changes: no generator is seeded, and no argument is modified.

    Args:
        width: number of nodes of each layer, inputs first; ``[sums, multiplications]`` for a layer in which some nodes
            multiply.
        grid: number of intervals G of the splines' grids; one for all layers, or a list with one for each.
        k: order of the splines, 1 to 5; one for all layers, or a list with one for each.
        mult_arity: number of factors of the multiplication nodes: one for all, or for each layer a list with one for
            each of its multiplication nodes.
        noise_scale: scale of the initial values of the splines.
        scale_base_mu, scale_base_sigma: mean and half width of the uniform distribution of the initial weights of the
            base functions, both times 1 / sqrt(inputs of the layer).
        base_fun: ``"silu"``, ``"identity"`` or ``"zero"``.
        affine_trainable: whether the scales and biases of nodes and subnodes are trained.
        grid_eps: placement of knots in grid updates: 1 spaces them evenly over the range of the samples, 0 at their
            quantiles.
        grid_range: lower and upper end of the initial grids.
        sp_trainable, sb_trainable: whether the scales of the splines, and those of the base functions, are trained.
        seed: seed of the initial parameters; None draws from torch's global generator.
        sparse_init: whether only the edges between each node and the nearest node on the other side are on initially.
        device, dtype: device and dtype of the parameters.
        outside: value of a spline outside of its grid: ``"zero"``, or ``"linear"`` to continue it by its tangents, as
            in :class:`KANLinear`.
        auto_save: whether a version is kept in memory after each method of the workflow, for :meth:`rewind` and
            :meth:`checkout`.

    Attributes:
        layers: the splines and base functions, a :class:`KANLinear` for each layer.
        symbolic: the formulas, a module for each layer.
        node_scale, node_bias, subnode_scale, subnode_bias: affine maps of the nodes and subnodes that each layer leads
            to.
        input_id: columns of x that the network reads, ``[in]``.
        sample: copy of the rows of the last :meth:`fit` or :meth:`get_act`, 10,000 at most, or None; not pickled.
        history: the results of each :meth:`fit`.
        architecture: numbers of nodes, subnodes and factors of each layer.
        in_features: number of columns of x, of which the network may read only some.
        prune_mask: for each layer a mask ``[in, out]`` of the edges that the last :meth:`prune` kept, or None.
        versions: the versions kept in memory, or None; see :meth:`keep_versions`.

    Raises:
        TypeError, ValueError: for arguments that are out of range or don't fit together.

    Example:
        >>> model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)
        >>> model(torch.rand(100, 2)).shape
        torch.Size([100, 1])
    """

    @kinds.checked(
        grid=kinds.OneOrEach(kinds.Int(least=1)), k=kinds.OneOrEach(ORDER), noise_scale=REAL, scale_base_mu=REAL,
        scale_base_sigma=REAL, base_fun=BaseFunction(BASES), outside=OUTSIDE, affine_trainable=FLAG,
        grid_eps=kinds.SHARE, grid_range=kinds.Bounds(), sp_trainable=FLAG, sb_trainable=FLAG, seed=kinds.SEED,
        sparse_init=FLAG, device=kinds.DEVICE, dtype=kinds.DTYPE,
        auto_save=FLAG,
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
        auto_save: bool = False,
        **unused: Any,
    ) -> None:
        check_unused("KAN", unused)
        structure = architecture(width, mult_arity)
        sizes = for_each_layer("grid", grid, structure.depth)
        orders = for_each_layer("k", k, structure.depth)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        layers = []
        for inputs, outputs, size, order in zip(structure.nodes, structure.subnodes[1:], sizes, orders):
            with torch.random.fork_rng(devices=[]):  # KANLinear draws initial parameters, which `reset` replaces
                layer = KANLinear(
                    inputs, outputs, size, order,
                    grid_range=grid_range, base=BASES[base_fun], spline_scale=True, outside=outside, dtype=dtype,
                ).to(device)  # fmt: skip
            if sparse_init:
                layer.set_mask(nearest_node_mask(inputs, outputs))
            reinitialize(layer, generator, noise_scale, scale_base_mu, scale_base_sigma)
            layer.get_parameter("spline_scale").requires_grad_(sp_trainable)
            if layer.base_weight is not None:
                layer.base_weight.requires_grad_(sb_trainable)
            layers.append(layer)
        super().__init__(structure, layers, affine_trainable, grid_eps)
        self.keep_versions(auto_save)

    versions: Versions | None = None

    # -- the workflow ------------------------------------------------------------------------------

    @kinds.checked(compile=FLAG)
    def speed(self, compile: bool = False) -> KAN:
        """Return the model, with ``compile=True`` after ``torch.compile``. pykan's method switches the evaluation of
        formulas off, which costs nothing here unless an edge is a formula."""
        return torch.compile(self) if compile else self  # type: ignore[return-value]

    def train(self, mode: Any = True, *args: Any, **options: Any) -> Any:
        """Set the training mode, as ``nn.Module`` does; with a dataset as the argument, call :meth:`fit`, as in the
        first version of pykan."""
        if isinstance(kinds.plain(mode), int):
            return super().train(FLAG.read("mode", mode))
        return self.fit(mode, *args, **options)

    # functions of other modules, whose first parameter is the model
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
