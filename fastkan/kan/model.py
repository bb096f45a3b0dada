"""``KAN``: the network, of numeric edges and of edges that are formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastkan_kernels import FLAG, ORDER, REAL
from fastkan_kernels import validation as kinds

from .. import plotting
from ..functional import OUTSIDE
from ..layers.init import near, reset
from ..layers.linear import KANLinear
from ..network import attribution, checkpoint, edit
from ..network import prune as pruning
from ..network import refine as refining
from ..network import trace as tracing
from ..network.architecture import architecture, for_each_layer, shortest
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

    Every edge is a spline plus a base function, or a formula c f(a x + b) + d; every node a sum of its edges, or a
    product of such sums. The names are pykan's. Nothing is global: no generator is seeded, no argument is changed.

    Args:
        width: nodes of each layer, inputs first; ``[sums, multiplications]`` where some nodes multiply.
        grid: G, intervals of the splines' grids; a list for one each layer.
        k: order of the splines, 1 to 5; a list for one each layer.
        mult_arity: factors of the multiplication nodes: one number, or for each layer the list of its nodes'.
        noise_scale: of the fresh splines' values.
        scale_base_mu, scale_base_sigma: mean, and half width around it, of the fresh base functions' weights, times
            1 / sqrt(inputs).
        base_fun: ``"silu"``, ``"identity"`` or ``"zero"``.
        affine_trainable: whether the scale and bias of nodes and subnodes are trained.
        grid_eps: of grid updates; 1 spaces knots evenly over the samples, 0 by their quantiles.
        grid_range: ends of the first grid.
        sp_trainable, sb_trainable: whether the scales of splines, and of base functions, are trained.
        seed: of the fresh parameters; None draws from torch's own generator.
        sparse_init: whether only near edges are on at first.
        device, dtype: of the parameters.
        outside: beyond its grid a spline runs out to ``"zero"``, or goes on ``"linear"``, as in :class:`KANLinear`.
        auto_save: whether a version is kept in memory after each step, for :meth:`rewind` and :meth:`checkout`.

    Attributes:
        layers: the numeric edges, a :class:`KANLinear` for each layer.
        symbolic: the edges that are formulas, for each layer.
        node_scale, node_bias, subnode_scale, subnode_bias: affine maps behind each layer.
        input_id: which columns of x the network reads.
        sample: rows of the last :meth:`fit` or :meth:`get_act`, copies, 10,000 at most, or None; pickles lack them.
        history: what each :meth:`fit` returned.
        prune_mask: which edges the last :meth:`prune` would keep, ``[in, out]`` of each layer, or None.

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
            with torch.random.fork_rng(devices=[]):  # a layer draws its first parameters from torch's generator
                layer = KANLinear(
                    inputs, outputs, size, order,
                    grid_range=grid_range, base=BASES[base_fun], spline_scale=True, outside=outside, dtype=dtype,
                ).to(device)  # fmt: skip
            if sparse_init:
                layer.set_mask(near(inputs, outputs))
            reset(layer, noise_scale, scale_base_mu, scale_base_sigma, generator)
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
        """Nothing to do here: a layer without formulas has no symbolic branch. Returns the model."""
        return torch.compile(self) if compile else self  # type: ignore[return-value]

    def train(self, mode: Any = True, *args: Any, **options: Any) -> Any:
        """With a bool ``nn.Module``'s training mode; with a dataset, as older articles write it, :meth:`fit`."""
        if isinstance(kinds.plain(mode), int):
            return super().train(FLAG.read("mode", mode))
        return self.fit(mode, *args, **options)

    # each in a file of its own, with the model for self
    trace = tracing.trace
    samples = tracing.samples
    get_act = tracing.get_act
    get_fun = tracing.get_fun
    get_range = tracing.get_range
    evaluate = fitting.evaluate
    check_edge = tracing.check_edge

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
        parts = [f"width={width}", f"grid={shortest(self.grid)}", f"k={shortest(self.k)}"]
        if any(self.architecture.arities):
            parts.append(f"mult_arity={self.mult_arity}")
        base = self.layers[0].base
        if base != "silu":
            parts.append("base_fun=" + repr("zero" if base == "none" else base))
        if self.layers[0].outside != "zero":
            parts.append(f"outside={self.layers[0].outside!r}")
        symbolic = sum(len(layer.edges) for layer in self.symbolic)
        return f"KAN({', '.join(parts)})" + (f", {symbolic} edges symbolic" if symbolic else "")
