"""``KAN``: the network, of numeric edges and of edges that are formulas."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastkan_kernels import arguments as kinds
from fastkan_kernels.arguments import FLAG, REAL
from fastkan_kernels.checks import ORDER
from fastkan_kernels.eager import needs_graph
from fastkan_kernels.stack import Spread, StackedLayer, column_std, small_stack
from fastkan_kernels.stack import serves as small_serves

from . import activations, attribution, plotting, serialization, surgery
from . import fit as fitting
from . import prune as pruning
from . import refine as refining
from .architecture import Architecture, architecture, for_each_layer, shortest
from .edges import has_hooks, is_stackable, numeric_spread, stacked
from .functional import OUTSIDE, rows_of
from .initial import near, reset
from .known import Fact, any_on, are_plain, is_in_order, is_plain
from .layer import KANLinear
from .pykan.arguments import BaseFunction, check_input, check_same_dtype, check_unused, method
from .pykan.methods import PykanMethods
from .symbolic import auto, fix
from .symbolic import formula as formulas
from .symbolic.edge import Y_TH, SymbolicEdges, guarded

AFFINE = ("node_scale", "subnode_scale", "node_bias", "subnode_bias")
BASES = {"silu": "silu", "identity": "identity", "zero": "none", "none": "none"}


class KAN(PykanMethods, nn.Module):
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

    input_id: Tensor
    _sample: activations.Sample

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
        super().__init__()
        check_unused("KAN", unused)
        self.architecture: Architecture = architecture(width, mult_arity)
        sizes = for_each_layer("grid", grid, self.depth)
        orders = for_each_layer("k", k, self.depth)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.grid_eps, self.in_features = grid_eps, self.width_in[0]
        self.sample = None
        self.history: list[dict[str, Any]] = []
        self.prune_mask: list[Tensor] | None = None

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layers: Any = nn.ModuleList()
        self.symbolic: Any = nn.ModuleList()
        for inputs, outputs, size, order in zip(self.width_in, self.width_out[1:], sizes, orders):
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
            self.layers.append(layer)
            self.symbolic.append(SymbolicEdges(inputs, outputs, **made))

        def affine(value: float, counts: Sequence[int]) -> Any:
            return nn.ParameterList(
                nn.Parameter(torch.full((count,), value, **made), requires_grad=affine_trainable) for count in counts
            )

        self.node_scale, self.node_bias = affine(1.0, self.width_in[1:]), affine(0.0, self.width_in[1:])
        self.subnode_scale, self.subnode_bias = affine(1.0, self.width_out[1:]), affine(0.0, self.width_out[1:])
        self.register_buffer("input_id", torch.arange(self.width_in[0], device=device))
        self.know()
        self.keep_versions(auto_save)

    # -- its sizes --------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of layers of edges."""
        return self.architecture.depth

    @property
    def width(self) -> list[list[int]]:
        """``[sums, multiplications]`` of each layer of nodes."""
        return self.architecture.width

    @property
    def mult_arity(self) -> list[list[int]]:
        """Number of factors of each multiplication node of each layer."""
        return [list(arity) for arity in self.architecture.arities]

    @property
    def width_in(self) -> list[int]:
        """Number of nodes of each layer."""
        return self.architecture.nodes

    @property
    def width_out(self) -> list[int]:
        """Number of subnodes of each layer: a multiplication node has one for each factor."""
        return self.architecture.subnodes

    @property
    def grid(self) -> list[int]:
        """G of each layer of edges."""
        return [layer.grid_size for layer in self.layers]

    @property
    def k(self) -> list[int]:
        """Order of the splines of each layer of edges."""
        return [layer.spline_order for layer in self.layers]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.input_id.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.layers[0].spline_weight.dtype

    # -- forward ----------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH, update_grid: bool = False
    ) -> Tensor:
        """``[..., in_features]`` to ``[..., width[-1]]``.

        Args:
            x: inputs, in the model's dtype.
            singularity_avoiding: whether formulas with a singularity (1/x, log, ...) are held at ``y_th`` near it.
            y_th: that bound, above 0.
            update_grid: not here: call :meth:`update_grid` first.

        Raises:
            TypeError, ValueError: for x of another kind, dtype or shape.
        """
        check_input(x, update_grid)
        if singularity_avoiding is not False or y_th is not Y_TH:
            singularity_avoiding, y_th = guarded(singularity_avoiding, y_th)
        rows = rows_of(x, self.in_features)
        y, _ = self.through(rows, singularity_avoiding, y_th)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])

    def through(
        self, rows: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0, spread: bool = False
    ) -> tuple[Tensor, list[Spread]]:
        """The outputs for ``rows [N, in_features]`` and, with ``spread``, standard deviations over them of each
        layer's numeric edges and inputs."""
        nodes, spreads = self.inputs(rows), []
        # a graph by x may be differentiated again, which the layers' contractions do at less cost
        stack = self.stack() if nodes.is_cpu and (spread or not needs_graph(nodes)) else None
        if stack is not None and small_serves(nodes, stack):
            return small_stack(nodes, stack, spread)
        for layer in range(self.depth):
            subnodes = self.subnodes_of(layer, nodes, singularity_avoiding, y_th)
            if spread:  # after the call, before which some compute their weights
                spreads.append(Spread(numeric_spread(self.layers[layer], nodes), column_std(nodes)))
            nodes = self.nodes_of(layer, subnodes)
        return nodes, spreads

    def inputs(self, rows: Tensor) -> Tensor:
        """The columns that the network reads."""
        check_same_dtype(rows, self.dtype)
        ids = self.input_id
        return rows if len(ids) == self.in_features and self._in_order(ids) else rows[:, ids]

    def subnodes_of(self, layer: int, nodes: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0) -> Tensor:
        """The sums of a layer's edges, ``[N, nodes]`` to ``[N, subnodes]``."""
        numeric, symbolic = self.layers[layer], self.symbolic[layer]
        if not symbolic.edges:
            return numeric(nodes)
        formulas = symbolic(nodes, singularity_avoiding=singularity_avoiding, y_th=y_th)
        return numeric(nodes) + formulas if self.has_numeric_edges(layer) else formulas

    def nodes_of(self, layer: int, subnodes: Tensor) -> Tensor:
        """What the sums of a layer's edges become on the way to the next layer's nodes."""
        scale, bias = self.subnode_scale[layer], self.subnode_bias[layer]
        last_scale, last_bias = self.node_scale[layer], self.node_bias[layer]
        plain = self._plain_subnodes[layer](scale, bias)
        last_plain = self._plain_nodes[layer](last_scale, last_bias)
        if not (plain or last_plain or self.architecture.arities[layer + 1]):  # both at once
            return torch.addcmul(torch.addcmul(last_bias, last_scale, bias), last_scale * scale, subnodes)
        if not plain:
            subnodes = torch.addcmul(bias, scale, subnodes)
        nodes = self._multiplied(layer + 1, subnodes)
        return nodes if last_plain else torch.addcmul(last_bias, last_scale, nodes)

    def is_watched(self) -> bool:
        """Whether calling it does more than its forward: by hooks, or in a class of its own."""
        return has_hooks(self) or type(self) is not KAN

    def stack(self) -> list[StackedLayer] | None:
        """Its layers, if it is layers of splines alone, without formulas, products or affine maps between them."""
        parts: dict[str, Any] = self._modules  # many calls of nn.Module.__getattr__ would show
        if any(self.architecture.arities) or any(layer.edges for layer in parts["symbolic"]._modules.values()):
            return None
        layers: list[KANLinear] = list(parts["layers"]._modules.values())
        if not all(map(is_stackable, layers)) or _has_any_global_hook():
            return None
        affine = (parts[name]._parameters.values() for name in AFFINE)
        return [stacked(layer) for layer in layers] if self._plain(*chain.from_iterable(affine)) else None

    def _multiplied(self, layer: int, subnodes: Tensor) -> Tensor:
        arities = self.architecture.arities[layer]
        if not arities:
            return subnodes
        groups = self.architecture.factors(layer)[self.architecture.sums[layer] :]
        products = []
        for group in groups:
            product = subnodes[:, group[0]]
            for factor in group[1:]:
                product = product * subnodes[:, factor]
            products.append(product)
        return torch.cat([subnodes[:, : self.architecture.sums[layer]], torch.stack(products, 1)], 1)

    def has_numeric_edges(self, layer: int) -> bool:
        """Whether any edge of the layer is a spline still."""
        return self._any_on[layer](self.layers[layer].mask)

    # -- the workflow ------------------------------------------------------------------------------

    def copy(self) -> KAN:
        """An independent copy."""
        return copy.deepcopy(self)

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
    sample = property(activations.sample, activations.remember)
    trace = activations.trace
    samples = activations.samples
    get_act = activations.get_act
    get_fun = activations.get_fun
    get_range = activations.get_range
    evaluate = activations.evaluate
    check_edge = activations.check_edge

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
    expand_width = method(surgery.expand_width)
    expand_depth = method(surgery.expand_depth)
    swap = method(surgery.swap)

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

    save = serialization.save
    load = staticmethod(serialization.load)
    load_state_dict = serialization.load_state_dict
    _load_from_state_dict = serialization.load_from_state_dict

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

    # -- plumbing ---------------------------------------------------------------------------------

    def know(self) -> None:
        """Facts about values, asked once and again when these change; compiled code takes the general way."""
        self._in_order = Fact(is_in_order, otherwise=False)
        self._any_on = [Fact(any_on, otherwise=True) for _ in range(self.depth)]
        self._plain = Fact(are_plain, otherwise=False)
        self._plain_subnodes = [Fact(is_plain, otherwise=False) for _ in range(self.depth)]
        self._plain_nodes = [Fact(is_plain, otherwise=False) for _ in range(self.depth)]
