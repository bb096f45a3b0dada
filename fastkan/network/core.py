"""The class ``Network``, which contains the layers of splines and formulas, and computes the forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

from fastkan_kernels import FLAG, LayerStd, StackLayer, column_std, fused_stack, needs_graph, recorder, supports_stack

from ..functional import rows_of
from ..layers.distributed import check_one_process
from ..layers.edge_functions import has_hooks, is_stackable, numeric_edge_std, stacked
from ..layers.grid import MARGIN
from ..layers.init import Initialization, nearest_node_mask
from ..layers.linear import KANLinear
from ..layers.symbolic import Y_TH, SymbolicEdges, read_guard_options
from ..layers.tracing import leaf
from ..layers.value_cache import CachedPredicate, any_on, are_plain, is_in_order, is_plain
from .architecture import Architecture
from .samples import Sample

NetworkT = TypeVar("NetworkT", bound="Network")
# The distribution of the initial parameters of pykan.
DEFAULT_INITIALIZATION = Initialization(0.3, unit_scale=False)
AFFINE = ("node_scale", "subnode_scale", "node_bias", "subnode_bias")


class Network(nn.Module):
    """A feed-forward network of layers of edges. The subclass :class:`KAN` adds the methods of the workflow.

    In each layer, the edge functions are applied to the values of the nodes, and each subnode is the sum of the values
    of its incoming edges. A first affine map is applied to the subnodes. Each multiplication node is the product of its
    subnodes. A second affine map then gives the nodes of the next layer.

    Args:
        architecture: the numbers of nodes of each layer, and the number of factors of each multiplication node.
        layers: the numeric edges (splines) of each layer.
        affine_trainable: whether the affine maps are trained.
        grid_eps, grid_margin: the weight of evenly spaced points in grid updates, and the fraction of the samples'
            range by which these extend beyond the samples; see :meth:`KANLinear.update_grid`.
        initialization, seed, sparse_init: the distribution of the initial parameters, their seed or None, and whether
            each node is initially connected only to the nearest node on the other side; see :meth:`reset_parameters`.
            The constructor leaves the parameters of the layers as they are.

    Attributes:
        layers: the numeric edges, a :class:`KANLinear` for each layer.
        symbolic: the edges that are formulas, a :class:`SymbolicEdges` for each layer.
        subnode_scale, subnode_bias, node_scale, node_bias: the parameters of the two affine maps of each layer.
        input_id: the indices of the columns of x that the network reads.
        sample: copies of at most 10,000 rows of the last fit or ``get_act``, or None. Pickle files do not contain the
            rows.
        history: a list with the results of each fit.
        prune_mask: a mask ``[in, out]`` for each layer of the edges that the last ``prune`` has kept, or None.
    """

    input_id: Tensor
    _sample: Sample

    def __init__(
        self,
        architecture: Architecture,
        layers: Sequence[KANLinear],
        affine_trainable: bool = False,
        grid_eps: float = 0.02,
        initialization: Initialization = DEFAULT_INITIALIZATION,
        seed: int | None = None,
        sparse_init: bool = False,
        grid_margin: float = MARGIN,
    ) -> None:
        super().__init__()
        self._seed, self._sparse_init = seed, sparse_init
        self.architecture = architecture
        self.grid_eps, self.grid_margin, self.in_features = grid_eps, grid_margin, self.width_in[0]
        self.sample = None
        self.history: list[dict[str, Any]] = []
        self.prune_mask: list[Tensor] | None = None
        weight = layers[0].spline_weight
        made: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.layers: Any = nn.ModuleList(layers)
        for layer in layers:
            layer._initialization = initialization
        self.symbolic: Any = nn.ModuleList(
            SymbolicEdges(layer.in_features, layer.out_features, **made) for layer in layers
        )

        def affine(value: float, counts: Sequence[int]) -> Any:
            each = (nn.Parameter(torch.full((n,), value, **made), requires_grad=affine_trainable) for n in counts)
            return Constants(value, each)

        self.node_scale, self.node_bias = affine(1.0, self.width_in[1:]), affine(0.0, self.width_in[1:])
        self.subnode_scale, self.subnode_bias = affine(1.0, self.width_out[1:]), affine(0.0, self.width_out[1:])
        self.register_buffer("input_id", torch.arange(self.width_in[0], device=weight.device))
        self._reset_caches()
        self.register_load_state_dict_post_hook(_freeze_idle_layers)

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """The number of layers of edges."""
        return self.architecture.depth

    @property
    def width(self) -> list[list[int]]:
        """A list ``[sums, multiplications]`` for each layer: the numbers of addition nodes and multiplication nodes."""
        return self.architecture.width

    @property
    def mult_arity(self) -> list[list[int]]:
        """A list for each layer with the number of factors of each multiplication node."""
        return [list(arity) for arity in self.architecture.arities]

    @property
    def width_in(self) -> list[int]:
        """The number of nodes of each layer."""
        return self.architecture.nodes

    @property
    def width_out(self) -> list[int]:
        """The number of subnodes of each layer. A multiplication node has one subnode for each factor."""
        return self.architecture.subnodes

    @property
    def grid(self) -> list[int]:
        """The number of grid intervals G of each layer of edges."""
        return [layer.grid_size for layer in self.layers]

    @property
    def k(self) -> list[int]:
        """The spline order k of each layer of edges."""
        return [layer.spline_order for layer in self.layers]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.input_id.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.layers[0].spline_weight.dtype

    # -- forward ----------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH, update_grid: bool = False
    ) -> Tensor:
        """Return the outputs ``[..., out_features]`` of the network.

        Args:
            x: the inputs ``[..., in_features]``, in the dtype of the model.
            singularity_avoiding: whether to bound formulas near their singularities (1/x, log, ...) by ``y_th``.
            y_th: a positive bound on the absolute values of formulas near their singularities.
            update_grid: whether to adapt the knots to x first, as :meth:`KAN.update_grid` does. Training loops that
                were written for efficient-kan pass this argument.

        Raises:
            TypeError, ValueError: if x is not a tensor or has the wrong dtype or shape.
        """
        if isinstance(x, Proxy):
            return self._traced(without_grid_update(x, update_grid), singularity_avoiding, y_th)
        check_input(x)
        if update_grid is not False and FLAG.read("update_grid", update_grid):
            check_one_process("update_grid=True", "Call update_grid(x, group=torch.distributed.group.WORLD) instead")
            with self._restored_grids_after_errors():
                self._adapt_grids(rows_of(x, self.in_features).detach())
        if singularity_avoiding is not False or y_th is not Y_TH:
            singularity_avoiding, y_th = read_guard_options(singularity_avoiding, y_th)
        rows = rows_of(x, self.in_features)
        y, _ = self._forward_with_std(rows, singularity_avoiding, y_th)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])

    def _forward_with_std(
        self, rows: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0, with_std: bool = False
    ) -> tuple[Tensor, list[LayerStd]]:
        """Return a tuple of the outputs for ``rows [N, in_features]`` and a list of standard deviations over the rows.

        If ``with_std`` is true, the list contains the standard deviations of the numeric edges and the inputs of each
        layer; otherwise, the list is empty.
        """
        nodes, stds = self._select_inputs(rows), []
        # If x requires a gradient, the graph may be differentiated twice, which is faster without the fused stack.
        stack = self._stacked_layers() if nodes.is_cpu and (with_std or not needs_graph(nodes)) else None
        if stack is not None and supports_stack(nodes, stack):
            return fused_stack(nodes, stack, with_std)
        for layer in range(self.depth):
            subnodes = self._subnode_values(layer, nodes, singularity_avoiding, y_th)
            # The layer is called first, because a parametrization may compute the weights during the call.
            if with_std:
                stds.append(LayerStd(numeric_edge_std(self.layers[layer], nodes), column_std(nodes)))
            nodes = self._node_values(layer, subnodes)
        return nodes, stds

    def _traced(self, x: Proxy, singularity_avoiding: bool, y_th: float) -> Any:
        """Record a call in the graph of ``torch.fx``. The graph calls the layers and is correct for all values that
        masks and affine maps may have later, and for formulas that are added or removed later."""
        nodes: Any = selected_rows(x, self.input_id, self.in_features)  # type: ignore[arg-type]
        for layer, (numeric, symbolic) in enumerate(zip(self.layers, self.symbolic)):
            formulas = symbolic(nodes, singularity_avoiding=singularity_avoiding, y_th=y_th)
            subnodes = numeric(nodes) + formulas
            subnodes = torch.addcmul(self.subnode_bias[layer], self.subnode_scale[layer], subnodes)
            products = self._multiplied(layer + 1, subnodes)
            nodes = torch.addcmul(self.node_bias[layer], self.node_scale[layer], products)
        return with_leading_shape(nodes, x)  # type: ignore[arg-type]

    def _select_inputs(self, rows: Tensor) -> Tensor:
        """Return the columns of x that the network reads."""
        check_same_dtype(rows, self.dtype)
        ids = self.input_id
        return rows if len(ids) == self.in_features and self._in_order(ids) else rows[:, ids]

    def _subnode_values(
        self, layer: int, nodes: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0
    ) -> Tensor:
        """Return the subnodes ``[N, subnodes]`` of a layer, which are sums of edge values, for ``nodes [N, nodes]``."""
        numeric, symbolic = self.layers[layer], self.symbolic[layer]
        if not symbolic.has_edges:
            return numeric(nodes)
        formulas = symbolic(nodes, singularity_avoiding=singularity_avoiding, y_th=y_th)
        return numeric(nodes) + formulas if self._has_numeric_edges(layer) else formulas

    def _node_values(self, layer: int, subnodes: Tensor) -> Tensor:
        """Return the nodes of the next layer, by applying the affine maps and products of a layer to its subnodes."""
        scale, bias = self.subnode_scale[layer], self.subnode_bias[layer]
        last_scale, last_bias = self.node_scale[layer], self.node_bias[layer]
        recording = recorder()
        if recording is not None:
            affine = scale, bias, last_scale, last_bias
            scale, bias, last_scale, last_bias = (recording.rows(each, len(subnodes)) for each in affine)
        plain = self._plain_subnodes[layer](scale, bias)
        last_plain = self._plain_nodes[layer](last_scale, last_bias)
        if not (plain or last_plain or self.architecture.arities[layer + 1]):
            # Without products, the two affine maps are combined into one.
            return torch.addcmul(torch.addcmul(last_bias, last_scale, bias), last_scale * scale, subnodes)
        if not plain:
            subnodes = torch.addcmul(bias, scale, subnodes)
        nodes = self._multiplied(layer + 1, subnodes)
        return nodes if last_plain else torch.addcmul(last_bias, last_scale, nodes)

    def _has_hooks_or_override(self) -> bool:
        """Whether hooks or overridden methods may make a call of the network differ from :meth:`_forward_with_std`."""
        own, base = type(self), Network
        methods = own.forward, own._forward_with_std, own._select_inputs, own._subnode_values, own._node_values
        return has_hooks(self) or methods != (
            base.forward, base._forward_with_std, base._select_inputs, base._subnode_values, base._node_values
        )  # fmt: skip

    def _stacked_layers(self) -> list[StackLayer] | None:
        """Return the layers for the fused stack, or None if there are formulas, products, affine maps or hooks."""
        parts: dict[str, Any] = self._modules  # Reading a dictionary is faster than nn.Module.__getattr__.
        if any(self.architecture.arities) or any(layer.has_edges for layer in parts["symbolic"]._modules.values()):
            return None
        layers: list[KANLinear] = list(parts["layers"]._modules.values())
        if not all(map(is_stackable, layers)) or _has_any_global_hook():
            return None
        affine = (parts[name]._parameters.values() for name in AFFINE)
        return [stacked(layer) for layer in layers] if self._plain(*chain.from_iterable(affine)) else None

    def _multiplied(self, layer: int, subnodes: Tensor) -> Tensor:
        """Return the nodes ``[N, nodes]``, in which each multiplication node is the product of its subnodes."""
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

    def _has_numeric_edges(self, layer: int) -> bool:
        """Whether at least one spline of the layer is not switched off by the mask."""
        return self._any_on[layer](self.layers[layer].mask)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _adapt_grids(self, rows: Tensor, sample_weight: Tensor | None = None) -> None:
        """Adapt the knots of every layer to the values that enter the layer for ``rows [N, in_features]``."""
        nodes = self._select_inputs(rows)
        for number, layer in enumerate(self.layers):
            if self._has_numeric_edges(number):
                layer._check_own_splines("update_grid")
                samples = layer._samples(nodes)
                layer._write_splines(*layer._adapted(samples, self.grid_eps, self.grid_margin, sample_weight))
            nodes = self._node_values(number, self._subnode_values(number, nodes))

    @contextmanager
    def _restored_grids_after_errors(self) -> Iterator[None]:
        """Restore the knots and the splines of all layers if an exception is raised in the context."""
        before = [(layer.spline_weight.detach().clone(), layer.knots.clone()) for layer in self.layers]
        try:
            yield
        except BaseException:
            with torch.inference_mode(False), torch.no_grad():
                for layer, (weight, knots) in zip(self.layers, before):
                    layer._write_splines(weight, knots)
            raise

    # -- state --------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset the network in place to the state of a new network with the same numbers of nodes and grid intervals.

        The parameters are drawn as the constructor draws them: from the seed that was passed to the constructor, so
        that each call gives the same parameters, or from torch's global generator if the seed was None, if the network
        was loaded from a file, or if it was converted. Files do not contain ``noise_scale``, ``scale_base_mu``,
        ``scale_base_sigma`` and ``sparse_init``, so a network that was loaded from a file has their defaults. All knots
        move to their initial positions. Formulas and masks are removed, so all edges are splines and on, except for
        those that ``sparse_init`` switches off. The affine maps become the identity. The results of earlier fits,
        ``history``, ``sample`` and ``prune_mask``, are removed.

        ``input_id`` selects the columns of x in their order. If the network reads only some of the columns, because
        inputs were pruned, the network reads the same columns as before.

        After the call, no value of the network depends on the memory that the network had before. A network that was
        constructed on the device ``"meta"`` and then given memory is therefore ready after this call.

        Raises:
            ValueError: if inputs were pruned and ``input_id`` has lost the selection of columns, because it was on the
                device ``"meta"``.
            RuntimeError: if a layer refuses the call, see :meth:`KANLinear.reset_parameters`. The network is unchanged
                in this case.

        Example:
            >>> model = KAN(width=[2, 5, 1], seed=0)
            >>> empty = KAN(width=[2, 5, 1], seed=0, device="meta").to_empty(device="cpu")
            >>> empty.reset_parameters()
            >>> torch.equal(empty.layers[0].spline_weight, model.layers[0].spline_weight)
            True
        """
        for layer in self.layers:
            layer._check_resettable()
        self._reset_input_id()
        generator = None if self._seed is None else torch.Generator().manual_seed(self._seed)
        for layer, symbolic in zip(self.layers, self.symbolic):
            symbolic.reset_parameters()
            layer._reset(generator)
            if self._sparse_init:
                layer.set_mask(nearest_node_mask(layer.in_features, layer.out_features))
        for name in AFFINE:
            getattr(self, name).reset_parameters()
        self.sample, self.prune_mask, self.history = None, None, []

    def _reset_input_id(self) -> None:
        ids, count = self.input_id, self.width_in[0]
        if ids.is_meta:
            return
        if self.in_features == count:
            ids.copy_(torch.arange(count, device=ids.device))
        elif not set(ids.tolist()) <= set(range(self.in_features)) or len(set(ids.tolist())) < count:
            raise ValueError(
                f"input_id must be {count} of the {self.in_features} columns of x, because inputs were pruned, got "
                f"{ids.tolist()}: load a state first"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state as ``nn.Module`` does. All formulas of the network are replaced by the formulas in the state.

        A state that contains only layers is accepted too, such as the state of a list ``layers`` of :class:`KANLinear`
        modules, or an efficient-kan checkpoint that ``convert_state_dict`` has converted. The network then reads all
        columns of x, has no formulas, and its affine maps are the identity. If the state has no scales, they are 1.
        """
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = tuple(f"{prefix}{name}" for name in ("input_id", *AFFINE))
        if not any(name.startswith(own) for name in state_dict):
            state_dict.update(self._neutral_state(state_dict, prefix))
        if f"{prefix}input_id" in state_dict:
            for place in (f"{prefix}symbolic.{layer}." for layer in range(self.depth)):
                if not any(name.startswith(place) for name in state_dict):
                    state_dict[f"{place}formulas"] = []  # A state without entries for the layer has no formulas.
        super()._load_from_state_dict(state_dict, prefix, *args)
        for symbolic in self.symbolic:
            symbolic._materialize_empty(self.input_id.device)

    def _neutral_state(self, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """Return the entries that are missing in a state that contains only layers: affine maps that are the identity,
        the columns of x in order, and scales of 1. If the state does not contain all layers, return an empty
        dictionary."""
        places = [f"{prefix}layers.{place}." for place in range(self.depth)]
        weights = [state_dict.get(f"{place}spline_weight") for place in places]
        found: dict[str, Tensor] = {}
        for number, (place, layer, weight) in enumerate(zip(places, self.layers, weights)):
            if not isinstance(weight, Tensor):
                return {}
            if layer.spline_scale is not None and f"{place}spline_scale" not in state_dict:
                found[f"{place}spline_scale"] = weight.new_ones(weight.shape[1:])
            for name in AFFINE:
                value = float(name.endswith("scale"))
                found[f"{prefix}{name}.{number}"] = weight.new_full(getattr(self, name)[number].shape, value)
        found[f"{prefix}input_id"] = torch.arange(self.width_in[0], device=weights[0].device)  # type: ignore[union-attr]
        return found

    # -- samples ------------------------------------------------------------------------------------

    @property
    def sample(self) -> Tensor | None:
        """Copies of at most 10,000 rows ``[N, in_features]`` of the last fit or ``get_act``, or None."""
        return self._sample.rows

    @sample.setter
    def sample(self, rows: Tensor | None) -> None:
        self._sample = Sample(rows)

    def copy(self: NetworkT) -> NetworkT:
        """Return a deep copy of the network, which shares no tensors with the network."""
        return copy.deepcopy(self)

    # -- plumbing ---------------------------------------------------------------------------------

    def _reset_caches(self) -> None:
        """Create empty caches for the predicates on values of tensors that the forward pass evaluates."""
        self._in_order = CachedPredicate(is_in_order, default=False)
        self._any_on = [CachedPredicate(any_on, default=True) for _ in range(self.depth)]
        self._plain = CachedPredicate(are_plain, default=False)
        self._plain_subnodes = [CachedPredicate(is_plain, default=False) for _ in range(self.depth)]
        self._plain_nodes = [CachedPredicate(is_plain, default=False) for _ in range(self.depth)]


def _freeze_idle_layers(model: Network, _: Any) -> None:
    """Freeze the layers that a loaded state has made idle. PyTorch calls this hook also if the state of a module that
    contains the network is loaded, which does not call ``load_state_dict`` of the network."""
    for layer in model.layers:
        layer._freeze_if_idle()


@leaf
def selected_rows(x: Tensor, input_id: Tensor, in_features: int) -> Tensor:
    """Return the columns ``input_id`` of ``x [..., in_features]`` as rows ``[N, in]``."""
    return rows_of(x, in_features)[:, input_id]


def without_grid_update(x: Any, update_grid: Any) -> Any:
    """Return x, and raise a ValueError if ``update_grid`` is true, when the graph is recorded or when it runs."""
    if update_grid is False:
        return x
    if isinstance(update_grid, Proxy):
        return x.tracer.create_proxy("call_function", without_grid_update, (x, update_grid), {})
    if FLAG.read("update_grid", update_grid):
        raise ValueError("update_grid=True cannot be recorded by torch.fx: call update_grid(x) of the network instead")
    return x


@leaf
def with_leading_shape(y: Tensor, x: Tensor) -> Tensor:
    """Return the rows ``y [N, out]`` in the shape ``[..., out]``, for inputs ``x [..., in]``."""
    return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])


class Constants(nn.ParameterList):
    """A list of parameters whose initial values are all equal to one number."""

    def __init__(self, value: float, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.value = value

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set all parameters to their initial value."""
        for parameter in self:
            parameter.fill_(self.value)


def check_input(x: Any) -> None:
    """Raise a TypeError if x is not a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a torch.Tensor, got {type(x).__name__}: use model.predict(x) for outputs without gradients, "
            "or torch.as_tensor(x, dtype=model.dtype)"
        )


def check_same_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Check that x has the dtype of the model.

    Raises:
        TypeError: if the dtypes differ.
    """
    if x.dtype != dtype:
        other = "model.double()" if x.dtype == torch.float64 else f"model.to({x.dtype})"
        raise TypeError(f"x is {x.dtype}, but the model is {dtype}: use x.to({dtype}), or once {other}")
