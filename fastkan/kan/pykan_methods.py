"""Less common methods of pykan's networks, implemented as short functions that call the functions of the workflow."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import Choice, Int, Path, Real, Text, checked

from ..layers.edge_functions import mask_of
from ..network import swaps
from ..network.attribution import attribute
from ..network.checkpoint import load, save
from ..network.edit import swap
from ..network.prune import remove_edge
from ..network.refine import refine
from ..network.trace import check_not_sharded, default_rows, edge_kinds, edges_on, rows_for
from ..training.regularization import REG_METRICS, Penalty
from . import versions as keeping
from . import views
from .old_arguments import INSTEAD, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..network.core import Network, NetworkT


def cache_data(model: Network) -> Tensor | None:
    """The rows of x that the last ``fit`` or ``get_act`` used, or None."""
    return model.sample


def auto_save(model: Network) -> bool:
    """Whether a version of the network is kept in memory after each step of the workflow."""
    return model.versions is not None


def n_edge(model: Network) -> int:
    """The number of edges whose spline is on."""
    return sum(int(mask_of(layer).sum()) for layer in model.layers)


def n_sum(model: Network) -> list[int]:
    """The number of addition nodes in each hidden layer."""
    return list(model.architecture.sums[1:-1])


def n_mult(model: Network) -> list[int]:
    """The number of multiplication nodes in each hidden layer."""
    return [len(arities) for arities in model.architecture.arities[1:-1]]


def get_params(model: Network) -> list[Any]:
    """Return a list of all parameters of the network."""
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
    """Compute the differentiable penalty that ``fit(lamb=1)`` adds to the loss, for use in a custom training loop.

    Args:
        reg_metric, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff: options of the penalty, documented in
            :meth:`KAN.fit`.
        x: the inputs ``[N, in_features]``, or None to use the samples that the model stores.

    Returns:
        A tensor that contains one number.

    Example:
        >>> model = KAN([2, 5, 1], seed=0)
        >>> bool(model.get_reg(x=torch.rand(100, 2)) > 0)
        True
    """
    check_not_sharded(model, "get_reg")
    rows = rows_for(model, x, strict=False)
    return Penalty(model, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff, reg_metric)(rows)[1]


def node_scores(model: Network) -> list[Tensor]:
    """The attribution scores of the nodes of each layer, ``attribute().nodes``."""
    return attribute(model).nodes  # type: ignore[union-attr]


def edge_scores(model: Network) -> list[Tensor]:
    """The attribution scores ``[out, in]`` of the edges of each layer, the transposes of ``attribute().edges``."""
    return [score.t() for score in attribute(model).edges]  # type: ignore[union-attr]


def subnode_scores(model: Network) -> list[Tensor]:
    """The attribution scores of the subnodes of each layer, ``attribute().subnodes``."""
    return attribute(model).subnodes  # type: ignore[union-attr]


def node_attribute(model: Network, x: Tensor | None = None) -> list[Tensor]:
    """Compute how much each input of the network contributes to the attribution score of each node.

    Args:
        x: samples, documented in :meth:`KAN.attribute`.

    Returns:
        A list of one tensor ``[nodes, inputs]`` for each layer of nodes except the inputs.
    """
    nodes = attribute(model, x=x).nodes  # type: ignore[union-attr]
    return [attribute(model, l, None, nodes[l], x) for l in range(1, model.depth + 1)]  # type: ignore[misc]


@checked(l=Int(least=1), neuron_th=Real(), feature_th=Real())
def feature_interaction(
    model: Network, l: int, neuron_th: float = 1e-2, feature_th: float = 1e-2, x: Tensor | None = None
) -> dict[tuple[int, ...], int]:
    """Count, for each set of inputs, the nodes of a layer that depend on exactly this set of inputs.

    Args:
        l: the index of the layer of nodes, at least 1.
        neuron_th: the threshold that a node's largest score (see :meth:`KAN.node_attribute`) must exceed for the node
            to be counted.
        feature_th: the fraction of a node's largest score that the score of an input must exceed for the node to
            depend on the input.
        x: samples, documented in :meth:`KAN.attribute`.

    Returns:
        A dictionary that maps tuples of inputs to numbers of nodes.

    Raises:
        TypeError, ValueError: if the layer does not exist.

    Example:
        >>> model = KAN([2, 3, 1], seed=0)
        >>> model.feature_interaction(1, x=torch.rand(50, 2))
        {(0, 1): 3}
    """
    if l > model.depth:
        raise ValueError(f"l must be at most {model.depth}, the last layer of nodes; got {l}")
    nodes = attribute(model, x=x).nodes  # type: ignore[union-attr]
    scores: Any = attribute(model, l, None, nodes[l], x)
    depends_on = scores > feature_th * scores.amax(1, keepdim=True)
    alive = depends_on[scores.amax(1) > neuron_th]
    return dict(Counter(tuple(row.nonzero().flatten().tolist()) for row in alive))


def connection_cost(model: Network) -> float:
    """The sum over all edges of the attribution score times the length of the edge.

    The nodes of each layer are spaced evenly over a width of 1. The length of an edge is the horizontal distance
    between its two ends.
    """
    return swaps.connection_cost(edge_scores(model))


def auto_swap(model: Network, x: Tensor | None = None) -> None:
    """Reorder the hidden nodes, in place, so that edges with large attribution scores become short.

    Reordering hidden nodes does not change the outputs of the network.

    Args:
        x: samples, documented in :meth:`KAN.attribute`.

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
    """Reorder the nodes of one hidden layer, in place, so that edges with large attribution scores become short.

    Args:
        l: the index of the layer of nodes, from 1 to ``depth - 1``.
        x: samples, documented in :meth:`KAN.attribute`.

    Raises:
        TypeError, ValueError: if the layer is not a hidden layer.
    """
    if l >= model.depth:
        raise ValueError(f"l must name a hidden layer, from 1 to {model.depth - 1}; got {l}")
    _order(model, [l], x)


def _order(model: Network, layers: Sequence[int] | None, x: Tensor | None) -> None:
    groups = [model.architecture.factors(l) for l in range(model.depth + 1)]
    rows = rows_for(model, x, changing="auto_swap")
    swaps.order_nodes(attribute(model, x=rows).edges, partial(swap, model), groups, layers)  # type: ignore[union-attr]


@checked(mag=Real(), mode=Choice(("non-intrusive", "all", "minimal")))
@torch.inference_mode(False)
@torch.no_grad()
def perturb(model: Network, mag: float = 1.0, mode: str = "non-intrusive") -> None:
    """Switch on splines, in place, so that a network compiled from a formula can learn more than the formula.

    In a network that :func:`kanpiler` has compiled from a formula, all splines are off.

    Args:
        mag: the factor by which the splines that are switched on are multiplied.
        mode: the choice of edges. ``"non-intrusive"`` switches on all edges into those subnodes that have no active
            edge, and all edges of the last layer. Edges of the last layer that were off are multiplied by 0, so that
            the outputs do not change. ``"minimal"`` switches on the splines of all edges that are formulas. ``"all"``
            switches on the splines of all edges.

    Raises:
        TypeError, ValueError: if ``mode`` is not one of the three names.

    Example:
        >>> import sympy
        >>> x, y = sympy.symbols("x y")
        >>> model = kanpiler([x, y], sympy.exp(x + y**2))
        >>> model.perturb(mode="all")
        >>> model.n_edge
        3
    """
    check_not_sharded(model, "perturb")
    for l, layer in enumerate(model.layers):
        numeric, formulas = edge_kinds(model, l)
        is_last = l == model.depth - 1
        if mode == "minimal":
            selected = formulas
        elif mode == "all" or is_last:
            selected = torch.ones_like(numeric)
        else:
            selected = ~edges_on(model, l).any(0).expand_as(numeric)
        layer.set_mask((numeric | selected).float())
        scale = 0.0 if mode == "non-intrusive" and is_last else mag
        factor = torch.where(selected & ~numeric, scale, 1.0).to(layer.spline_weight)
        (layer.spline_weight if layer.spline_scale is None else layer.spline_scale).mul_(factor)
        if layer.base_weight is not None:
            layer.base_weight.mul_(factor)


@checked(start_layer=Int(least=0), chain=Text())
def module(model: Network, start_layer: int, chain: str) -> None:
    """Separate a group of nodes from all other nodes, in place.

    All edges between nodes in the group and nodes outside of the group are switched off.

    Args:
        start_layer: the index of the first layer of edges.
        chain: the group, as an alternating sequence of lists of nodes and lists of subnodes. In the example
            ``"[0,1]->[0]->[0]->[0]"``, nodes 0 and 1 are connected only to subnode 0 in the first layer of edges, and
            node 0 is connected only to subnode 0 in the second layer of edges. Negative node numbers count from the
            end of the layer.

    Raises:
        TypeError, ValueError: if the chain is malformed or contains nodes that do not exist.

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
    layers = [start_layer + index for index in range(len(groups) // 2)]
    if len(groups) % 2 or layers[-1] >= model.depth:
        raise ValueError(f"chain must have two lists for each layer from {start_layer} up to at most "
                         f"{model.depth - 1}, got {chain!r}")  # fmt: skip
    counts = [count for l in layers for count in (model.width_in[l], model.width_out[l + 1])]
    for nodes, count in zip(groups, counts):
        if not all(-count <= node < count for node in nodes):
            raise ValueError(f"chain must name nodes below {count} in each place, got {chain!r}")
    members = [{node % count for node in nodes} for nodes, count in zip(groups, counts)]
    for place, l in enumerate(layers):
        for i, j in itertools.product(range(counts[2 * place]), range(counts[2 * place + 1])):
            if (i in members[2 * place]) != (j in members[2 * place + 1]):
                remove_edge(model, l, i, j)


def tree(model: Network, x: Tensor | None = None, **options: Any) -> Figure:
    """Draw a tree that shows how the network combines its inputs; see :func:`plot_tree`.

    Args:
        x: the inputs ``[N, in_features]``, or None to use the samples that the model stores.
        options: further keyword arguments of :func:`plot_tree`.
    """
    from ..plotting.tree import plot_tree

    return plot_tree(model, default_rows(model) if x is None else x, **options)


@torch.no_grad()
def initialize_from_another_model(model: Network, another_model: Network, x: Tensor | None = None) -> Network:
    """Fit a network, in place, to the function of another network. The network keeps its numbers of grid intervals.

    Args:
        another_model: a network whose width, mult_arity and k equal those of the model.
        x: samples ``[N, in_features]``, or None to use the samples that the other network stores.

    Returns:
        The fitted network, which is the model itself.

    Raises:
        ValueError: if the two networks differ in width, mult_arity or k.

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
    """Save the model to a file. This method is an alias of :meth:`KAN.save` under pykan's name."""
    save(model, path)


@checked(path=Path())
def loadckpt(cls: type[NetworkT], path: str | os.PathLike[str] = "model") -> NetworkT:
    """Load a model from a file. This method is an alias of :meth:`KAN.load` under pykan's name.

    Raises:
        ValueError: if the file was written by pykan. A file that was written by pykan must be loaded by pykan, and the
            loaded model can then be passed to ``fastkan.convert``.
        OSError, ValueError: in the same cases as :meth:`KAN.load`.
    """
    if not os.path.exists(path) and os.path.exists(f"{os.fsdecode(path)}_config.yml"):
        raise ValueError(f"{os.fsdecode(path)!r} was written by pykan: load it by kan.KAN.loadckpt there, and "
                         "fastkan.convert(model) makes a network of it")  # fmt: skip
    return load(cls, path)


class PykanMethods:
    """A base class with methods and properties of pykan's networks, for code that was written for pykan."""

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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if any(base.__name__ == "PyTorchModelHubMixin" for base in cls.__mro__):
            # The mixin of huggingface_hub saves ``self.module`` instead of the model if there is such an attribute.
            cls.module = property()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for part in ("_modules", "_buffers"):  # nn.Module.__getattr__ is slower because it searches parameters first
            if part in own and name in own[part]:
                return own[part][name]
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name not in INSTEAD:
                raise
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}: {INSTEAD[name]}")
