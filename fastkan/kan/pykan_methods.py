"""pykan's methods of a network that have no other place here, as thin functions on what there is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import Choice, Int, Path, Real, Text, checked

from ..functional import rows_of
from ..layers.edge_functions import mask_of
from ..network import swaps
from ..network.attribution import attribute
from ..network.checkpoint import load, save
from ..network.edit import swap
from ..network.prune import remove_edge
from ..network.refine import refine
from ..network.trace import default_rows, edge_kinds, edges_on
from ..training.regularization import REG_METRICS, Penalty
from . import versions as keeping
from . import views
from .old_arguments import INSTEAD, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..network.core import Network, NetworkT


def cache_data(model: Network) -> Tensor | None:
    """The rows of the last fit or ``get_act``, or None."""
    return model.sample


def auto_save(model: Network) -> bool:
    """Whether versions are kept in memory."""
    return model.versions is not None


def n_edge(model: Network) -> int:
    """Number of edges that are on as splines."""
    return sum(int(mask_of(layer).sum()) for layer in model.layers)


def n_sum(model: Network) -> list[int]:
    """Number of addition nodes of each hidden layer."""
    return list(model.architecture.sums[1:-1])


def n_mult(model: Network) -> list[int]:
    """Number of multiplication nodes of each hidden layer."""
    return [len(arities) for arities in model.architecture.arities[1:-1]]


def get_params(model: Network) -> list[Any]:
    """All parameters, in a list."""
    return list(model.parameters())


@checked(reg_metric=Choice(REG_METRICS), lamb_l1=Real(), lamb_entropy=Real(), lamb_coef=Real(), lamb_coefdiff=Real())
def get_reg(
    model: Network,
    reg_metric: str = "edge_forward_spline_n",
    lamb_l1: float = 1.0,
    lamb_entropy: float = 2.0,
    lamb_coef: float = 0.0,
    lamb_coefdiff: float = 0.0,
    x: Tensor | None = None,
) -> Tensor:
    """The penalty that ``fit(lamb=1)`` adds; differentiable, for a training loop of one's own.

    Args:
        reg_metric, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff: as in :meth:`KAN.fit`.
        x: ``[N, in_features]``; None takes the model's samples.

    Example:
        >>> model = KAN([2, 5, 1], seed=0)
        >>> bool(model.get_reg(x=torch.rand(100, 2)) > 0)
        True
    """
    rows = default_rows(model) if x is None else rows_of(x, model.in_features)
    return Penalty(model, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff, reg_metric)(rows)[1]


def node_scores(model: Network) -> list[Tensor]:
    """``attribute().nodes``: how much the nodes of each layer matter for the outputs."""
    return attribute(model).nodes  # type: ignore[union-attr]


def edge_scores(model: Network) -> list[Tensor]:
    """How much the edges of each layer matter, ``[out, in]``; in ``attribute().edges`` inputs come first."""
    return [score.t() for score in attribute(model).edges]  # type: ignore[union-attr]


def subnode_scores(model: Network) -> list[Tensor]:
    """``attribute().subnodes``: how much the subnodes of each layer matter for the outputs."""
    return attribute(model).subnodes  # type: ignore[union-attr]


def node_attribute(model: Network, x: Tensor | None = None) -> list[Tensor]:
    """How much each input matters for the outputs by way of each node, ``[nodes, inputs]`` of each layer behind the
    inputs.

    Args:
        x: samples, as in :meth:`KAN.attribute`.
    """
    nodes = attribute(model, x=x).nodes  # type: ignore[union-attr]
    return [attribute(model, l, None, nodes[l], x) for l in range(1, model.depth + 1)]  # type: ignore[misc]


@checked(l=Int(least=1), neuron_th=Real(), feature_th=Real())
def feature_interaction(
    model: Network, l: int, neuron_th: float = 1e-2, feature_th: float = 1e-2, x: Tensor | None = None
) -> dict[tuple[int, ...], int]:
    """Which inputs act together in how many nodes of a layer.

    Args:
        l: layer of nodes, from 1.
        neuron_th: what an input must be worth for the outputs, by way of a node, for that node to count.
        feature_th: what share of a node's most important input another must be worth.
        x: samples, as in :meth:`KAN.attribute`.

    Returns:
        The number of nodes by the tuple of their inputs.

    Raises:
        TypeError, ValueError: for a layer that is not there.

    Example:
        >>> model = KAN([2, 3, 1], seed=0)
        >>> model.feature_interaction(1, x=torch.rand(50, 2))
        {(0, 1): 3}
    """
    if l > model.depth:
        raise ValueError(f"l must be at most {model.depth}, the last layer of nodes; got {l}")
    nodes = attribute(model, x=x).nodes  # type: ignore[union-attr]
    scores = attribute(model, l, None, nodes[l], x)
    found: dict[tuple[int, ...], int] = {}
    for score in scores:
        assert isinstance(score, Tensor)
        if score.max() > neuron_th:
            features = tuple((score > score.max() * feature_th).nonzero().flatten().tolist())
            found[features] = found.get(features, 0) + 1
    return found


def connection_cost(model: Network) -> float:
    """The sum of all edges' scores, each times how far apart its ends are if each layer has width 1."""
    return swaps.connection_cost(edge_scores(model))


def auto_swap(model: Network, x: Tensor | None = None) -> None:
    """Exchange hidden nodes, in place, so that edges that matter are short; the network computes what it did.

    Args:
        x: samples, as in :meth:`KAN.attribute`.

    Example:
        >>> model = KAN([4, 4, 1], seed=0)
        >>> steps = model.get_act(torch.rand(50, 4))
        >>> before = model.connection_cost
        >>> model.auto_swap()
        >>> model.connection_cost <= before
        True
    """
    _order(model, None, x)


@checked(l=Int(least=1))
def auto_swap_l(model: Network, l: int, x: Tensor | None = None) -> None:
    """Exchange the nodes of one hidden layer, in place, so that edges that matter are short.

    Args:
        l: the layer of nodes, from 1 to ``depth - 1``.
        x: samples, as in :meth:`KAN.attribute`.

    Raises:
        TypeError, ValueError: for a layer that is not hidden.
    """
    if l >= model.depth:
        raise ValueError(f"l must name a hidden layer, from 1 to {model.depth - 1}; got {l}")
    _order(model, [l], x)


def _order(model: Network, layers: Sequence[int] | None, x: Tensor | None) -> None:
    groups = [model.architecture.factors(l) for l in range(model.depth + 1)]
    swaps.order_nodes(attribute(model, x=x).edges, partial(swap, model), groups, layers)  # type: ignore[union-attr]


@checked(mag=Real(), mode=Choice(("non-intrusive", "all", "minimal")))
@torch.inference_mode(False)
@torch.no_grad()
def perturb(model: Network, mag: float = 1.0, mode: str = "non-intrusive") -> None:
    """Switch splines on, in place, that a compiled network (:func:`kanpiler`) has off, so that it can learn more.

    A node is active in a layer of edges if a formula or a spline there begins, or ends, at it.

    Args:
        mag: factor of the splines that come on.
        mode: ``"non-intrusive"`` for edges to subnodes that are not active, and in the last layer for all edges, there
            with a scale of 0 for now. ``"minimal"`` for edges that are formulas, and
            ``"all"`` for all.

    Raises:
        TypeError, ValueError: for another mode.

    Example:
        >>> import sympy
        >>> x, y = sympy.symbols("x y")
        >>> model = kanpiler([x, y], sympy.exp(x + y**2))
        >>> model.perturb(mode="all")
        >>> model.n_edge
        3
    """
    for l, layer in enumerate(model.layers):
        numeric, formulas = edge_kinds(model, l)
        if mode == "all":
            wanted = torch.ones_like(numeric)
        elif mode == "minimal":
            wanted = formulas
        elif l == model.depth - 1:
            wanted = torch.ones_like(numeric)
        else:
            wanted = ~edges_on(model, l).any(0).expand_as(numeric)
        fresh = wanted & ~numeric
        layer.set_mask((numeric | wanted).float())
        silent = mode == "non-intrusive" and l == model.depth - 1
        factor = torch.where(fresh, 0.0 if silent else mag, 1.0).to(layer.spline_weight)
        (layer.spline_weight if layer.spline_scale is None else layer.spline_scale).mul_(factor)
        if layer.base_weight is not None:
            layer.base_weight.mul_(factor)


@checked(start_layer=Int(least=0), chain=Text())
def module(model: Network, start_layer: int, chain: str) -> None:
    """Switch off, in place, all edges between some nodes and others, so that these are a module of their own.

    Args:
        start_layer: the first layer of edges.
        chain: nodes and subnodes by turns, such as ``"[0,1]->[0]->[0]->[0]"``: in the first layer nodes 0 and 1 go to
            subnode 0 alone, in the next node 0 to subnode 0. Negative numbers count from the end.

    Raises:
        TypeError, ValueError: for a chain that is none, or nodes that are not there.

    Example:
        >>> model = KAN([2, 2, 1], seed=0)
        >>> model.module(0, "[0]->[0]")
        >>> model.layers[0].mask
        tensor([[1., 0.],
                [0., 1.]])
    """
    try:
        groups = [[int(entry) for entry in part.strip()[1:-1].split(",")] for part in chain.split("->")]
    except ValueError:
        raise ValueError(f"chain must be lists of nodes such as '[0,1]->[0]', got {chain!r}") from None
    layers = [start_layer + place for place in range(len(groups) // 2)]
    if len(groups) % 2 or layers[-1] >= model.depth:
        raise ValueError(f"chain must have two lists for each layer from {start_layer} up to at most "
                         f"{model.depth - 1}, got {chain!r}")  # fmt: skip
    off = []
    for l, inside, outside in zip(layers, groups[::2], groups[1::2]):
        ins = _counted(inside, model.width_in[l], chain)
        outs = _counted(outside, model.width_out[l + 1], chain)
        off += [(l, i, j) for i in range(model.width_in[l]) for j in range(model.width_out[l + 1])
                if (i in ins) != (j in outs)]  # fmt: skip
    for edge in off:
        remove_edge(model, *edge)


def _counted(nodes: Sequence[int], count: int, chain: str) -> set[int]:
    if not all(-count <= node < count for node in nodes):
        raise ValueError(f"chain must name nodes below {count} in each place, got {chain!r}")
    return {node % count for node in nodes}


def tree(model: Network, x: Tensor | None = None, **options: Any) -> Figure:
    """:func:`plot_tree` of the network; None takes its samples.

    Args:
        x: ``[N, in_features]``.
        options: as :func:`plot_tree` takes them.
    """
    from ..plotting.tree import plot_tree

    return plot_tree(model, default_rows(model) if x is None else x, **options)


@torch.no_grad()
def initialize_from_another_model(model: Network, another_model: Network, x: Tensor | None = None) -> Network:
    """Make this network, in place, compute what another one does, on grids of its own size.

    Args:
        another_model: of the same width, multiplications and orders.
        x: ``[N, in_features]`` samples; None takes the other model's.

    Returns:
        The model.

    Raises:
        ValueError: for a network of another shape.

    Example:
        >>> coarse, fine = KAN([2, 5, 1], grid=5, seed=0), KAN([2, 5, 1], grid=10, seed=1)
        >>> x = torch.rand(50, 2)
        >>> bool((fine.initialize_from_another_model(coarse, x)(x) - coarse(x)).abs().max() < 1e-4)
        True
    """
    if (model.architecture, model.k) != (another_model.architecture, another_model.k):
        raise ValueError(f"another_model must be of the same width, mult_arity and k; got {another_model} for {model}")
    finer = refine(another_model, model.grid, x)
    model.load_state_dict(finer.state_dict())
    model.sample = finer.sample
    return model


@checked(path=Path())
def saveckpt(model: Network, path: str | os.PathLike[str] = "model") -> None:
    """:meth:`KAN.save` by pykan's name: one file."""
    save(model, path)


@checked(path=Path())
def loadckpt(cls: type[NetworkT], path: str | os.PathLike[str] = "model") -> NetworkT:
    """:meth:`KAN.load` by pykan's name.

    Raises:
        ValueError: for what pykan has written; load that by pykan, and give it to ``fastkan.convert``.
        OSError, ValueError: as :meth:`KAN.load`.
    """
    if not os.path.exists(path) and os.path.exists(f"{os.fsdecode(path)}_config.yml"):
        raise ValueError(f"{os.fsdecode(path)!r} was written by pykan: load it by kan.KAN.loadckpt there, and "
                         "fastkan.convert(model) makes a network of it")  # fmt: skip
    return load(cls, path)


class PykanMethods:
    """What a network has beside its own methods, for those who know pykan."""

    versions: keeping.Versions | None

    act_fun = property(views.act_fun)
    symbolic_fun = property(views.symbolic_fun)

    auto_save = property(auto_save)
    keep_versions = keeping.keep_versions
    rewind = keeping.rewind
    checkout = keeping.checkout
    log_history = keeping.log_history
    saveckpt = saveckpt
    loadckpt: Any = classmethod(loadckpt)

    cache_data = property(cache_data)
    n_edge = property(n_edge)
    n_sum = property(n_sum)
    n_mult = property(n_mult)
    node_scores = property(node_scores)
    edge_scores = property(edge_scores)
    subnode_scores = property(subnode_scores)
    node_attribute = node_attribute
    feature_interaction = feature_interaction
    get_params = get_params
    get_reg = reg = get_reg

    connection_cost = property(connection_cost)
    auto_swap = method(auto_swap)
    auto_swap_l = method(auto_swap_l)
    perturb = method(perturb)
    module = method(module)
    tree = tree
    initialize_from_another_model = method(initialize_from_another_model)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for part in ("_modules", "_buffers"):  # quicker than by nn.Module, which asks for parameters first
            if part in own and name in own[part]:
                return own[part][name]
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name not in INSTEAD:
                raise
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}: {INSTEAD[name]}")
