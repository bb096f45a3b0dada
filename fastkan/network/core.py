"""``Network``: layers of numeric edges and of edges that are formulas, and the forward through them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastkan_kernels import FLAG, LayerStd, StackLayer, column_std, fused_stack, needs_graph, supports_stack

from ..functional import rows_of
from ..layers.edge_functions import has_hooks, is_stackable, numeric_spread, stacked
from ..layers.linear import KANLinear
from ..layers.resting import rest
from ..layers.symbolic import Y_TH, SymbolicEdges, guarded
from ..layers.value_cache import CachedPredicate, any_on, are_plain, is_in_order, is_plain
from .architecture import Architecture
from .samples import Sample

NetworkT = TypeVar("NetworkT", bound="Network")
AFFINE = ("node_scale", "subnode_scale", "node_bias", "subnode_bias")


class Network(nn.Module):
    """Layers of edges one after another: their structure, their state and the forward.

    Args:
        architecture: nodes and products of each layer.
        layers: numeric edges of each layer.
        affine_trainable: whether the scale and bias of nodes and subnodes are trained.
        grid_eps: share of evenly spaced knots in grid updates.

    Attributes:
        layers: the numeric edges, a :class:`KANLinear` for each layer.
        symbolic: the edges that are formulas, for each layer.
        node_scale, node_bias, subnode_scale, subnode_bias: affine maps behind each layer.
        input_id: which columns of x the network reads.
        sample: rows of the last fit or ``get_act``, copies, 10,000 at most, or None; pickles lack them.
        history: what each fit returned.
        prune_mask: which edges the last ``prune`` would keep, ``[in, out]`` of each layer, or None.
    """

    input_id: Tensor
    _sample: Sample

    def __init__(
        self,
        architecture: Architecture,
        layers: Sequence[KANLinear],
        affine_trainable: bool = False,
        grid_eps: float = 0.02,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.grid_eps, self.in_features = grid_eps, self.width_in[0]
        self.sample = None
        self.history: list[dict[str, Any]] = []
        self.prune_mask: list[Tensor] | None = None
        weight = layers[0].spline_weight
        made: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.layers: Any = nn.ModuleList(layers)
        self.symbolic: Any = nn.ModuleList(
            SymbolicEdges(layer.in_features, layer.out_features, **made) for layer in layers
        )

        def affine(value: float, counts: Sequence[int]) -> Any:
            return nn.ParameterList(
                nn.Parameter(torch.full((count,), value, **made), requires_grad=affine_trainable) for count in counts
            )

        self.node_scale, self.node_bias = affine(1.0, self.width_in[1:]), affine(0.0, self.width_in[1:])
        self.subnode_scale, self.subnode_bias = affine(1.0, self.width_out[1:]), affine(0.0, self.width_out[1:])
        self.register_buffer("input_id", torch.arange(self.width_in[0], device=weight.device))
        self._reset_caches()

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
    ) -> tuple[Tensor, list[LayerStd]]:
        """The outputs for ``rows [N, in_features]`` and, with ``spread``, standard deviations over them of each
        layer's numeric edges and inputs."""
        nodes, spreads = self.inputs(rows), []
        # a graph by x may be differentiated again, which the layers' contractions do at less cost
        stack = self.stack() if nodes.is_cpu and (spread or not needs_graph(nodes)) else None
        if stack is not None and supports_stack(nodes, stack):
            return fused_stack(nodes, stack, spread)
        for layer in range(self.depth):
            subnodes = self.subnodes_of(layer, nodes, singularity_avoiding, y_th)
            if spread:  # after the call, before which some compute their weights
                spreads.append(LayerStd(numeric_spread(self.layers[layer], nodes), column_std(nodes)))
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
        """Whether calling it does more than the forward of this class, because of hooks or of methods of a subclass."""
        own = type(self)
        methods = own.forward, own.through, own.inputs, own.subnodes_of, own.nodes_of
        return has_hooks(self) or methods != (
            Network.forward, Network.through, Network.inputs, Network.subnodes_of, Network.nodes_of
        )  # fmt: skip

    def stack(self) -> list[StackLayer] | None:
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

    # -- state --------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state as ``nn.Module`` does; one with formulas fits a network without, and the other way round."""
        found = super().load_state_dict(state_dict, strict, assign)
        for layer in self.layers:
            rest(layer)
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}input_id" in state_dict:
            for place in (f"{prefix}symbolic.{layer}." for layer in range(self.depth)):
                if not any(name.startswith(place) for name in state_dict):
                    state_dict[f"{place}formulas"] = []  # a state that says nothing of a layer's formulas has none
        super()._load_from_state_dict(state_dict, prefix, *args)

    # -- samples ------------------------------------------------------------------------------------

    @property
    def sample(self) -> Tensor | None:
        """The rows that the network remembers, ``[N, in_features]``, or None."""
        return self._sample.rows

    @sample.setter
    def sample(self, rows: Tensor | None) -> None:
        self._sample = Sample(rows)

    def copy(self: NetworkT) -> NetworkT:
        """An independent copy."""
        return copy.deepcopy(self)

    # -- plumbing ---------------------------------------------------------------------------------

    def _reset_caches(self) -> None:
        """Facts about values, asked once and again when these change; compiled code takes the general way."""
        self._in_order = CachedPredicate(is_in_order, default=False)
        self._any_on = [CachedPredicate(any_on, default=True) for _ in range(self.depth)]
        self._plain = CachedPredicate(are_plain, default=False)
        self._plain_subnodes = [CachedPredicate(is_plain, default=False) for _ in range(self.depth)]
        self._plain_nodes = [CachedPredicate(is_plain, default=False) for _ in range(self.depth)]


def check_input(x: Any, update_grid: bool) -> None:
    """``x`` is a tensor, and no grid is to be updated on the way, as efficient-kan does.

    Raises:
        TypeError: otherwise.
    """
    if update_grid is not False and FLAG.read("update_grid", update_grid):
        raise TypeError(
            "update_grid is no argument of a forward here: model.update_grid(x) moves the grids, then model(x)"
        )
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a torch.Tensor, got {type(x).__name__}; torch.as_tensor(x, dtype=model.dtype) makes one"
        )


def check_same_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """``x`` has the dtype of the model.

    Raises:
        TypeError: otherwise.
    """
    if x.dtype != dtype:
        other = "model.double()" if x.dtype == torch.float64 else f"model.to({x.dtype})"
        raise TypeError(f"x is {x.dtype}, but the model is {dtype}: use x.to({dtype}), or once {other}")
