"""``SymbolicEdges``: the edges of a layer that are formulas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastkan_kernels import validation as kinds

from .function_library import IDENTITY, SYMBOLIC_LIB, lookup
from .value_cache import CachedPredicate

Y_TH = 10.0  # pykan's default bound of |f| near a singularity


def read_guard_options(singularity_avoiding: Any, y_th: Any) -> tuple[bool, float]:
    """Return the two options of a forward, validated; compiled code does not validate them."""
    if torch.compiler.is_compiling():
        return singularity_avoiding, y_th
    return kinds.FLAG.read("singularity_avoiding", singularity_avoiding), kinds.Real(above=0).read("y_th", y_th)


class Edge(NamedTuple):
    """A formula on the edge from input ``i`` to output ``j``, by the name of its function in the library."""

    i: int
    j: int
    name: str


class SymbolicEdges(nn.Module):
    """The edges of a layer that are formulas.

        y[n, j] = sum over edges (i, j) of  c f(a x[n, i] + b) + d

    Args:
        in_features, out_features: numbers of inputs and outputs.
        device, dtype: those of the parameter.

    Attributes:
        edges: a tuple of :class:`Edge`, at most one for each (i, j), sorted by (i, j).
        affine: ``[E, 4]``, rows (a, b, c, d) in the order of ``edges``; a parameter, or an empty buffer without edges.
        ends: ``[2, E]``, the inputs and outputs of ``edges``.
        formulas: ``edges`` as a ``state_dict`` stores them, a JSON text ``[[i, j, name], ...]`` as uint8; None without
            edges.

    Raises:
        TypeError, ValueError: for negative sizes, or a dtype that a layer does not support.

    Example:
        >>> symbolic = SymbolicEdges(2, 3)
        >>> symbolic.fix(0, 1, "sin", (3.14, 0, 1, 0))
        >>> symbolic(torch.rand(8, 2)).shape
        torch.Size([8, 3])
    """

    affine: Tensor
    ends: Tensor
    formulas: Tensor | None
    _order: Tensor | None
    _inputs: Tensor | None
    _outputs: Tensor | None

    @kinds.checked(in_features=kinds.INDEX, out_features=kinds.INDEX, device=kinds.DEVICE, dtype=kinds.DTYPE)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.in_features = in_features
        self.out_features = out_features
        self.edges: tuple[Edge, ...] = ()
        self.register_buffer("affine", torch.empty((0, 4), device=device, dtype=dtype), persistent=False)
        self.register_buffer("formulas", None)
        for name in ("ends", "_order", "_inputs", "_outputs"):
            self.register_buffer(name, None, persistent=False)
        self._group()
        self._any_on = CachedPredicate(_any_on, default=True)

    # -- values -----------------------------------------------------------------------------------

    def forward(self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH) -> Tensor:
        """Map ``[N, in_features]`` to ``[N, out_features]``.

        Args:
            singularity_avoiding: whether to move arguments into the domain of each function, and away from its
                singularities until ``|f|`` is at most about ``y_th``.
            y_th: that bound, above 0.

        Raises:
            TypeError, ValueError: for another shape, dtype or device, or a y_th that is not positive.
        """
        self._check(x)
        if not self.edges:
            return x.new_zeros(x.shape[0], self.out_features)  # a tracer would record len(x) as a constant
        values = self._values(x, singularity_avoiding, y_th)
        if self.out_features == 1:
            return values if len(self.edges) == 1 else values.sum(1, keepdim=True)
        if self._outputs is None:
            return values
        if x.is_cuda:  # index_add sums in an undefined order there
            zeros = values.new_zeros(self.out_features, x.shape[0])
            return zeros.index_put((self._outputs,), values.t(), accumulate=True).t()
        return values.new_zeros(x.shape[0], self.out_features).index_add(1, self._outputs, values)

    def values(self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH) -> Tensor:
        """Return the value of each edge by itself, ``[N, E]`` in the order of ``edges``.

        Arguments and errors are those of :meth:`forward`.
        """
        self._check(x)
        if not self.edges:
            return x.new_zeros(x.shape[0], 0)
        values = self._values(x, singularity_avoiding, y_th)
        return values if self._order is None else values[:, self._order.argsort()]

    def has_splines(self, mask: Tensor | None) -> bool:
        """Whether the mask ``[in, out]`` of the layer's splines leaves any spline on at an edge that is a formula."""
        return self._any_on(mask, self.ends)

    def _check(self, x: Tensor) -> None:
        kinds.check_tensor("x", x)
        kinds.check_shape("x", x, ("N", self.in_features))
        kinds.check_alike(x, affine=self.affine)

    def _values(self, x: Tensor, singularity_avoiding: bool, y_th: float) -> Tensor:
        """Return the values of the edges, ``[N, E]``, sorted by function, so that each function is called once."""
        affine = self.affine if self._order is None else self.affine.index_select(0, self._order)
        a, b, c, d = affine.unbind(1)
        if self._inputs is not None:
            # On CUDA the backward of index_select sums in an undefined order, that of indexing does not.
            x = x[:, self._inputs] if x.is_cuda else x.index_select(1, self._inputs)
        z = torch.addcmul(b, x, a)
        parts = z.split(self._counts, 1) if len(self._counts) > 1 else (z,)
        functions = [lookup(name) for name in self._names]
        if singularity_avoiding is not False or y_th is not Y_TH:
            singularity_avoiding, y_th = read_guard_options(singularity_avoiding, y_th)
        if singularity_avoiding:
            done = [function.guarded(part, y_th) for function, part in zip(functions, parts)]
        else:
            done = [function.fun(part) for function, part in zip(functions, parts)]
        return torch.addcmul(d, done[0] if len(done) == 1 else torch.cat(done, 1), c)

    # -- edges ------------------------------------------------------------------------------------

    @kinds.checked(i=kinds.INDEX, j=kinds.INDEX)
    def name(self, i: int, j: int) -> str | None:
        """Return the name of the function of edge (i, j), or None if the edge is no formula."""
        return next((edge.name for edge in self.edges if edge[:2] == (i, j)), None)

    @kinds.checked(i=kinds.INDEX, j=kinds.INDEX)
    @torch.inference_mode(False)
    @torch.no_grad()
    def fix(self, i: int, j: int, name: str, affine: Sequence[float] | Tensor = IDENTITY) -> None:
        """Make edge (i, j) the formula ``c f(a x + b) + d``, and replace the formula that it may have had.

        ``self.affine`` becomes a new parameter, so construct the optimizer afterwards.

        Args:
            name: of the function f in the library.
            affine: the numbers (a, b, c, d).

        Raises:
            TypeError, ValueError: for an edge or a function that does not exist, or an affine that is not four finite
                numbers; nothing has changed then.

        Example:
            >>> symbolic = SymbolicEdges(2, 3)
            >>> symbolic.fix(0, 1, "exp")
            >>> symbolic.name(0, 1)
            'exp'
        """
        self._check_place(i, j)
        name = lookup(name).name
        try:
            row = torch.as_tensor(affine, dtype=torch.float64, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError, OverflowError):  # NotImplementedError too, for a tensor on meta
            raise TypeError(f"affine must be four numbers, got {affine!r}") from None
        kinds.check_shape("affine", row, (4,))
        kinds.check_finite("affine", row.to(self.affine.dtype))
        kept = [(edge, n) for n, edge in enumerate(self.edges) if edge[:2] != (i, j)]
        rows = torch.cat([self.affine, row.to(self.affine).unsqueeze(0)])
        self._replace([*kept, (Edge(i, j, name), len(self.edges))], rows)

    @kinds.checked(i=kinds.INDEX, j=kinds.INDEX)
    @torch.inference_mode(False)
    @torch.no_grad()
    def unfix(self, i: int, j: int) -> None:
        """Remove the formula of edge (i, j).

        Raises:
            TypeError, ValueError: for an edge without a formula; nothing has changed then.

        Example:
            >>> symbolic = SymbolicEdges(2, 3)
            >>> symbolic.fix(0, 1, "exp")
            >>> symbolic.unfix(0, 1)
            >>> symbolic.edges
            ()
        """
        self._check_place(i, j)
        if self.name(i, j) is None:
            raise ValueError(f"edge ({i}, {j}) has no symbolic function to take away")
        self._replace([(edge, n) for n, edge in enumerate(self.edges) if edge[:2] != (i, j)], self.affine)

    @kinds.checked(inputs=kinds.Each(kinds.INDEX), outputs=kinds.Each(kinds.INDEX))
    @torch.inference_mode(False)
    @torch.no_grad()
    def subset(self, inputs: Iterable[int], outputs: Iterable[int]) -> SymbolicEdges:
        """Return a new module with the edges between some inputs and outputs, numbered in the order given.

        It shares no tensors with this one.

        Raises:
            TypeError, ValueError: for indices that are out of range or repeated.

        Example:
            >>> symbolic = SymbolicEdges(3, 3)
            >>> symbolic.fix(2, 1, "exp")
            >>> symbolic.subset([0, 2], [1]).edges
            (Edge(i=1, j=0, name='exp'),)
        """
        new_i = _numbered("inputs", inputs, self.in_features)
        new_j = _numbered("outputs", outputs, self.out_features)
        other = SymbolicEdges(len(new_i), len(new_j), self.affine.device, self.affine.dtype)
        inside = [(n, edge) for n, edge in enumerate(self.edges) if edge.i in new_i and edge.j in new_j]
        kept = [(Edge(new_i[i], new_j[j], name), n) for n, (i, j, name) in inside]
        other._replace(kept, self.affine, self.is_trained)
        return other.train(self.training)

    @property
    def is_trained(self) -> bool:
        """Whether ``affine`` requires a gradient; True without edges, since a new ``affine`` requires one."""
        return not self.edges or self.affine.requires_grad

    def _check_place(self, i: int, j: int) -> None:
        for name, index, size in (("i", i, self.in_features), ("j", j, self.out_features)):
            kinds.INDEX.read(name, index)  # also reached with edges that were read from a file
            if index >= size:
                raise ValueError(f"{name} must be below {size}, got {index}")

    def _replace(self, edges: list[tuple[Edge, int]], rows: Tensor, trained: bool | None = None) -> None:
        """Set the edges of pairs (edge, number of its row in ``rows``)."""
        edges = sorted(edges)
        trained = self.is_trained if trained is None else trained
        taken = rows.detach()[[n for _, n in edges]].reshape(-1, 4)
        self._set_edges(tuple(edge for edge, _ in edges), nn.Parameter(taken, requires_grad=trained))

    def _set_edges(self, edges: tuple[Edge, ...], affine: Tensor) -> None:
        """Set the edges and, in their order, their affine parameter."""
        if edges:
            self.affine = affine
        else:  # an empty parameter would require a gradient and never get one
            self._parameters.pop("affine", None)
            self.register_buffer("affine", affine.detach(), persistent=False)
        self.edges = edges
        self._group()

    def _group(self) -> None:
        """Compute the indices that :meth:`_values` uses; None stands for indices that change nothing."""
        edges, count = self.edges, len(self.edges)
        self._names = list(dict.fromkeys(edge.name for edge in edges))
        order = sorted(range(count), key=lambda n: self._names.index(edges[n].name))
        names = [edges[n].name for n in order]
        self._counts = [names.count(name) for name in self._names]

        def index(values: list[int], size: int) -> Tensor | None:
            return None if values == list(range(size)) else torch.tensor(values, device=device)

        device = self.affine.device
        ends = [[edge.i for edge in edges], [edge.j for edge in edges]]
        self.ends = torch.tensor(ends, dtype=torch.int64, device=device)
        # a tensor, because tools that average or save states accept nothing else
        text = list(json.dumps(edges).encode())
        self.formulas = torch.tensor(text, dtype=torch.uint8, device=device) if edges else None
        self._order = index(order, count)
        self._inputs = index([edges[n].i for n in order], self.in_features)
        self._outputs = index([edges[n].j for n in order], self.out_features)

    # -- plumbing ---------------------------------------------------------------------------------

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._group()  # made anew, because indices on meta have no values to copy
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        state_dict, names = dict(state_dict), (prefix + "formulas", prefix + "affine")
        state = state_dict.pop(prefix + "_extra_state", None)  # version 0.1 stored a list here
        state, affine = state_dict.get(names[0], state), state_dict.get(names[1])
        if state is None and affine is None and "version" in metadata:
            state = []  # the layer was saved without formulas
        if state is None and affine is not None and not self.edges:
            missing.append(names[0])
            return
        if state is not None:
            try:
                edges = self._edges_of(state)
                if edges and affine is None:
                    missing.append(names[1])
                    return
                if affine is not None:
                    kinds.check_tensor("affine", affine)
                    kinds.check_shape("affine", affine, (len(edges), 4))
            except (TypeError, ValueError) as error:
                errors.append(f"{prefix}affine: {error}")
                return
            same = len(edges) == len(self.edges)
            sized = nn.Parameter(self.affine.new_zeros(len(edges), 4), requires_grad=self.is_trained)
            self._set_edges(tuple(edges), self.affine if same else sized)
            state_dict = {name: value for name, value in state_dict.items() if name not in names}
            if edges:
                state_dict.update(zip(names, (self.formulas, affine)))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _edges_of(self, state: Any) -> list[Edge]:
        if isinstance(state, Tensor):  # averaging states makes it floating-point
            try:
                state = json.loads(bytes(state.detach().cpu().round().to(torch.uint8).tolist()))
            except (ValueError, TypeError, RuntimeError):
                raise ValueError("formulas must hold a JSON text as uint8, and holds none") from None
        try:
            edges = [Edge(*entry) for entry in state]
        except TypeError:
            raise TypeError(f"edges must be a list of [i, j, name], got {state!r}") from None
        for edge in edges:
            self._check_place(edge.i, edge.j)
        unknown = [edge.name for edge in edges if not isinstance(edge.name, str) or edge.name not in SYMBOLIC_LIB]
        if unknown:
            raise ValueError(f"no symbolic functions have the names {unknown}: add them by add_symbolic first")
        places = [edge[:2] for edge in edges]
        if places != sorted(set(places)):
            raise ValueError(f"edges must be sorted by (i, j), each once, got {places}")
        return edges

    def extra_repr(self) -> str:
        shown = ", ".join(f"{edge.i}-{edge.j} {edge.name}" for edge in self.edges[:8])
        more = "" if len(self.edges) <= 8 else f", and {len(self.edges) - 8} more"
        return f"{self.in_features}, {self.out_features}" + (f": {shown}{more}" if self.edges else "")


def _any_on(mask: Tensor | None, ends: Tensor) -> bool:
    return mask is None or bool(mask[ends[0], ends[1]].any())


def _numbered(name: str, indices: Iterable[int], size: int) -> dict[int, int]:
    """Map each index that is kept to its new number."""
    kept = list(indices)
    for index in kept:
        if index >= size:
            raise ValueError(f"{name} must be below {size}, got {index}")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{name} must have each index once, got {kept}")
    return {old: new for new, old in enumerate(kept)}
