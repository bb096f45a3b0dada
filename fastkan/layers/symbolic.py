"""The module ``SymbolicEdges``, which evaluates those edges of a layer that are formulas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from fastkan_kernels import has_values, recorder
from fastkan_kernels import validation as kinds

from .function_library import IDENTITY, SYMBOLIC_LIB, lookup
from .tracing import call_as_leaf
from .value_cache import PLAIN, CachedPredicate, TextMetadata

Y_TH = 10.0  # the default bound of |f| near a singularity, as in pykan


def read_guard_options(singularity_avoiding: Any, y_th: Any) -> tuple[bool, float]:
    """Validate and return the options ``singularity_avoiding`` and ``y_th`` of a forward pass.

    Under ``torch.compile`` the options are returned without validation.

    Raises:
        TypeError, ValueError: if ``singularity_avoiding`` is not a flag, or ``y_th`` is not a positive number.
    """
    if torch.compiler.is_compiling():
        return singularity_avoiding, y_th
    return kinds.FLAG.read("singularity_avoiding", singularity_avoiding), kinds.Real(above=0).read("y_th", y_th)


class Edge(NamedTuple):
    """A formula on the edge from input ``i`` to output ``j``, with the library function that is called ``name``.

    Example:
        >>> Edge(0, 2, "sin")
        Edge(i=0, j=2, name='sin')
    """

    i: int
    j: int
    name: str


class SymbolicEdges(nn.Module):
    """A module that evaluates the edges of a layer that are formulas.

        y[n, j] = sum over edges (i, j) of  c f(a x[n, i] + b) + d

    Args:
        in_features, out_features: the number of inputs and the number of outputs.
        device, dtype: the device and the dtype of the parameter ``affine``.

    Attributes:
        edges: a tuple of :class:`Edge`, at most one for each (i, j), sorted by (i, j).
        affine: a tensor ``[E, 4]`` with a row (a, b, c, d) for each edge, in the order of ``edges``. ``affine`` is a
            parameter or, if there are no edges, an empty buffer.
        ends: a tensor ``[2, E]`` with the inputs and the outputs that the edges connect.
        formulas: the form in which a ``state_dict`` stores ``edges``, a uint8 buffer that contains the JSON text
            ``[[i, j, name], ...]``. If there are no edges, ``formulas`` is None. If other code replaces the buffer or
            writes into it, as tools that load large checkpoints or broadcast buffers do, ``edges`` is read again.
            Compiled code cannot read it and returns NaN instead, until ``edges`` has been read outside of it.

    Raises:
        TypeError, ValueError: if a size is negative, or layers do not support the dtype.

    Example:
        >>> symbolic = SymbolicEdges(2, 3)
        >>> symbolic.fix(0, 1, "sin", (3.14, 0, 1, 0))
        >>> symbolic(torch.rand(8, 2)).shape
        torch.Size([8, 3])
    """

    affine: Tensor
    formulas: Tensor | None
    _indices: _Indices

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
        self.register_buffer("affine", torch.empty((0, 4), device=device, dtype=dtype), persistent=False)
        self.register_buffer("formulas", None)
        self._text = TextMetadata()
        self._set_edges((), self.affine)
        self._any_on = CachedPredicate(_any_on, default=True)

    # -- values -----------------------------------------------------------------------------------

    def forward(self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH) -> Tensor:
        """Map inputs ``[N, in_features]`` to outputs ``[N, out_features]``.

        Args:
            x: the inputs ``[N, in_features]``.
            singularity_avoiding: whether to move the argument of each function f into its domain, and away from its
                singularities until ``|f|`` is at most about ``y_th``.
            y_th: the bound of ``|f|`` near a singularity, a positive number.

        Raises:
            TypeError, ValueError: if x has the wrong shape, dtype or device, or ``y_th`` is not positive.
        """
        if isinstance(x, Proxy):
            traced: Any = call_as_leaf(self, x, singularity_avoiding=singularity_avoiding, y_th=y_th)
            if traced is not None:
                return traced
        self._check(x)
        changed = self._read_or_compare()
        y = self._sums(x, singularity_avoiding, y_th)
        return y if changed is None else y * _nan_if(changed, y)

    def _sums(self, x: Tensor, singularity_avoiding: bool, y_th: float) -> Tensor:
        """Return the outputs ``[N, out_features]`` for the edges that were read last."""
        edges, outputs = self._edges, self._indices_on(x.device).outputs
        if not edges:
            return x.new_zeros(x.shape[0], self.out_features)  # a tracer would record ``len(x)`` as a constant
        values = self._values(x, singularity_avoiding, y_th)
        if self.out_features == 1:
            return values if len(edges) == 1 else values.sum(1, keepdim=True)
        if outputs is None:
            return values
        if x.is_cuda:  # on CUDA, index_add sums in an undefined order
            zeros = values.new_zeros(self.out_features, x.shape[0])
            return zeros.index_put((outputs,), values.t(), accumulate=True).t()
        return values.new_zeros(x.shape[0], self.out_features).index_add(1, outputs, values)

    def values(self, x: Tensor, *, singularity_avoiding: bool = False, y_th: float = Y_TH) -> Tensor:
        """Return the value of each edge as a tensor ``[N, E]``, in the order of ``edges``.

        The arguments and the errors are documented in :meth:`forward`.
        """
        self._check(x)
        changed = self._read_or_compare()
        if not self._edges:
            return x.new_zeros(x.shape[0], 0)
        values, order = self._values(x, singularity_avoiding, y_th), self._indices_on(x.device).order
        values = values if order is None else values[:, order.argsort()]
        return values if changed is None else values * _nan_if(changed, values)

    def has_splines(self, mask: Tensor | None) -> bool:
        """Check whether the mask ``[in, out]`` of the layer's splines is 1 on at least one edge that is a formula."""
        return self._any_on(mask, self._indices_on(self.affine.device).ends)

    def _check(self, x: Tensor) -> None:
        kinds.check_tensor("x", x)
        kinds.check_shape("x", x, ("N", self.in_features))
        kinds.check_alike(x, affine=self.affine)

    def _values(self, x: Tensor, singularity_avoiding: bool, y_th: float) -> Tensor:
        """Return the values ``[N, E]`` of the edges, with the columns grouped by function.

        The edges are grouped before the evaluation, so that each function is called only once.
        """
        recording = recorder()
        affine = self.affine if recording is None else recording.rows(self.affine, len(x))
        indices = self._indices_on(x.device)
        if indices.order is not None:
            affine = affine.index_select(-2, indices.order)
        a, b, c, d = affine.unbind(-1)
        if indices.inputs is not None:
            # On CUDA indexing is used, because the backward pass of index_select sums in an undefined order.
            x = x[:, indices.inputs] if x.is_cuda else x.index_select(1, indices.inputs)
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

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges that are formulas, sorted by (i, j)."""
        if not torch.compiler.is_compiling():
            self._read(may_wait=True)
        return self._edges

    @property
    def has_edges(self) -> bool:
        """Whether there may be edges, without reading the buffer ``formulas``."""
        return self._buffers["formulas"] is not None or bool(self._edges)

    @property
    def ends(self) -> Tensor:
        """The inputs and the outputs that the edges connect, a tensor ``[2, E]``."""
        self._read_or_compare()
        return self._indices_on(self.affine.device).ends

    def reset_parameters(self) -> None:
        """Remove the formulas of all edges, since a new module has no formulas."""
        self._set_edges((), self.affine.detach()[:0])

    @kinds.checked(i=kinds.INDEX, j=kinds.INDEX)
    def name(self, i: int, j: int) -> str | None:
        """Return the name of the function on edge (i, j), or None if the edge is not a formula."""
        return next((edge.name for edge in self.edges if edge[:2] == (i, j)), None)

    @kinds.checked(i=kinds.INDEX, j=kinds.INDEX)
    @torch.inference_mode(False)
    @torch.no_grad()
    def fix(self, i: int, j: int, name: str, affine: Sequence[float] | Tensor = IDENTITY) -> None:
        """Set edge (i, j) to the formula ``c f(a x + b) + d``. An existing formula of the edge is replaced.

        ``self.affine`` becomes a new parameter, so the optimizer has to be constructed after this call.

        Args:
            i, j: the input and the output that the edge connects.
            name: the name of the function f in the library.
            affine: the numbers (a, b, c, d).

        Raises:
            TypeError, ValueError: if the edge or the function does not exist, or ``affine`` does not consist of four
                finite numbers. If an error is raised, nothing is changed.

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
        except (TypeError, ValueError, RuntimeError, OverflowError):  # for a tensor on meta, a RuntimeError is raised
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
            TypeError, ValueError: if the edge has no formula. If an error is raised, nothing is changed.

        Example:
            >>> symbolic = SymbolicEdges(2, 3)
            >>> symbolic.fix(0, 1, "exp")
            >>> symbolic.unfix(0, 1)
            >>> symbolic.edges
            ()
        """
        self._check_place(i, j)
        if self.name(i, j) is None:
            raise ValueError(f"edge ({i}, {j}) has no symbolic function to remove")
        self._replace([(edge, n) for n, edge in enumerate(self.edges) if edge[:2] != (i, j)], self.affine)

    @kinds.checked(inputs=kinds.Each(kinds.INDEX), outputs=kinds.Each(kinds.INDEX))
    @torch.inference_mode(False)
    @torch.no_grad()
    def subset(self, inputs: Iterable[int], outputs: Iterable[int]) -> SymbolicEdges:
        """Return a new module with the edges between some of the inputs and outputs.

        The inputs and outputs of the new module are numbered in the order of ``inputs`` and ``outputs``. The new module
        shares no tensors with the old module.

        Raises:
            TypeError, ValueError: if indices are out of range or repeated.

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
        """Whether ``affine`` requires a gradient; True if there are no edges, because new edges would require one."""
        return not self.edges or self.affine.requires_grad

    def _check_place(self, i: int, j: int) -> None:
        for name, index, size in (("i", i, self.in_features), ("j", j, self.out_features)):
            kinds.INDEX.read(name, index)  # the indices may have been read from a file, so they are validated here
            if index >= size:
                raise ValueError(f"{name} must be below {size}, got {index}")

    def _replace(self, edges: list[tuple[Edge, int]], rows: Tensor, trained: bool | None = None) -> None:
        """Replace all edges and their affine parameter.

        Args:
            edges: pairs of an edge and the index of its row in ``rows``.
            rows: a tensor ``[R, 4]`` with rows (a, b, c, d).
            trained: whether the new parameter requires a gradient, or None to keep the current setting.
        """
        edges = sorted(edges)
        trained = self.is_trained if trained is None else trained
        taken = rows.detach()[[n for _, n in edges]].reshape(-1, 4)
        self._set_edges(tuple(edge for edge, _ in edges), nn.Parameter(taken, requires_grad=trained))

    def _set_edges(self, edges: tuple[Edge, ...], affine: Tensor) -> None:
        """Set the edges and their affine parameter, whose rows are in the order of the edges."""
        if edges:
            self.affine = affine
        else:  # an empty parameter would require a gradient but never receive a gradient
            self._parameters.pop("affine", None)
            self.register_buffer("affine", affine.detach(), persistent=False)
        self._group(edges)
        self._write()

    def _group(self, edges: tuple[Edge, ...]) -> None:
        """Set the edges, and compute the groups of equal functions and the index tensors."""
        self._edges, device = edges, self.affine.device
        self._names = list(dict.fromkeys(edge.name for edge in edges))
        self._sorted = sorted(range(len(edges)), key=lambda n: self._names.index(edges[n].name))
        names = [edge.name for edge in edges]
        self._counts = [names.count(name) for name in self._names]
        self._indices = self._indices_for(device)

    @torch.inference_mode(False)
    def _write(self) -> None:
        """Replace the buffer ``formulas`` by a new one with the JSON text of the edges."""
        # The text is stored as a tensor, because tools that average or save states accept only tensors.
        self.formulas = text = self._json_text(self.affine.device)
        self._text.look(text, self._json_text(torch.device("cpu")) if text is not None and text.is_meta else None)

    def _json_text(self, device: torch.device) -> Tensor | None:
        text = list(json.dumps(self._edges).encode())
        return torch.tensor(text, dtype=torch.uint8, device=device) if self._edges else None

    def _indices_on(self, device: torch.device) -> _Indices:
        """Return the index tensors on a device.

        The tensors are not buffers, because tools that give memory to buffers or move parameters one by one would leave
        them with other contents or on another device.
        """
        if self._indices.ends.device != device:
            self._indices = self._indices_for(device)
        return self._indices

    @torch.inference_mode(False)
    def _indices_for(self, device: torch.device) -> _Indices:
        edges, order = self._edges, self._sorted

        def index(values: list[int], size: int) -> Tensor | None:
            return None if values == list(range(size)) else torch.tensor(values, device=device)

        ends = [[edge.i for edge in edges], [edge.j for edge in edges]]
        return _Indices(
            torch.tensor(ends, dtype=torch.int64, device=device),
            index(order, len(edges)),
            index([edges[n].i for n in order], self.in_features),
            index([edges[n].j for n in order], self.out_features),
        )

    def _read_or_compare(self) -> Tensor | None:
        """Read the edges again if the buffer ``formulas`` has changed, without making the host wait for a GPU.

        Returns:
            A bool tensor that tells whether the edges are not those of the buffer, so that the results are to be
            replaced by NaN, or None if the host has compared them.
        """
        formulas = self._buffers["formulas"]
        if formulas is None and not self._edges:
            return None
        if torch.compiler.is_compiling():
            if formulas is None:
                return torch.ones((), dtype=torch.bool, device=self.affine.device)
            return self._text.changed(formulas)
        if has_values(formulas):
            if not self._text.is_read(formulas, may_wait=False):
                self._read(may_wait=False)
            is_compared = formulas is not None and formulas.is_cuda
        else:  # fake tensors cannot be compared with tensors that have values
            is_compared = type(formulas) in PLAIN
        # A recorder of Jacobians has to recognize the parameters.
        if formulas is None or not is_compared or formulas.is_meta or recorder() is not None:
            return None
        return self._text.changed(formulas)

    def _read(self, may_wait: bool) -> None:
        """Set the edges to those of the buffer ``formulas``, if other code has replaced the buffer or its values.

        The buffer stays the same tensor, because DistributedDataParallel keeps a reference to it.
        """
        formulas = self._buffers["formulas"]
        if formulas is None and not self._edges:
            return
        if formulas is not None and (formulas.is_meta or not has_values(formulas)):
            return
        if self._text.is_read(formulas, may_wait):
            return
        try:
            edges = tuple(self._edges_of([] if formulas is None else formulas))
        except ValueError:
            if not self._is_truncated(formulas):
                raise
            return self._write()
        if len(edges) != len(self.affine):
            raise ValueError(f"formulas describes {len(edges)} edges, but affine has {len(self.affine)} rows")
        if edges != self._edges:
            self._group(edges)
        self._text.look(formulas)

    def _is_truncated(self, formulas: Tensor | None) -> bool:
        """Whether each byte of the buffer is that of the edges or one less.

        An exponential moving average of equal bytes, as ``torch.optim.swa_utils.get_ema_multi_avg_fn`` computes it, has
        such rounding errors.
        """
        text = None if formulas is None else self._json_text(formulas.device)
        if text is None or formulas is None or formulas.shape != text.shape or formulas.dtype != torch.uint8:
            return False
        return bool(torch.isin(text - formulas, torch.tensor([0, 1], device=text.device)).all())

    # -- plumbing ---------------------------------------------------------------------------------

    def _apply(self, fn, recurse=True):
        edges = self.edges
        self._materialize_empty(torch.device("cpu"))  # Module.to() raises for tensors on meta
        super()._apply(fn, recurse)
        self._group(edges)
        text = self._buffers["formulas"]
        if text is None or text.is_meta or text.dtype != torch.uint8 or not self._has_text(text):
            self._write()  # the buffer got memory without values, as by to_empty()
        return self

    def _has_text(self, formulas: Tensor) -> bool:
        """Whether the buffer has the JSON text of the edges, which is then stored in the cache."""
        text = self._json_text(formulas.device)
        if text is None or not has_values(formulas) or not torch.equal(formulas, text):
            return False
        self._text.look(formulas, text)
        return True

    def __getstate__(self) -> dict[str, Any]:
        with suppress(ValueError):  # a copy of a module with an invalid text has the same text
            self._read(may_wait=True)
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._text = TextMetadata()
        if self.formulas is not None and not self.formulas.is_meta:
            self._has_text(self.formulas)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        state_dict, names = dict(state_dict), (prefix + "formulas", prefix + "affine")
        state = state_dict.pop(prefix + "_extra_state", None)  # fastkan 0.1 stored the list of edges as extra state
        state, affine = state_dict.get(names[0], state), state_dict.get(names[1])
        if state is None and affine is None and "version" in metadata:
            state = []  # the saved layer had no formulas
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
        if self.formulas is not None and self.formulas.device != self.affine.device:
            self._group(self._edges)  # the state was assigned to a module on another device, for example on meta
            self._write()

    def _materialize_empty(self, device: torch.device) -> None:
        """Move ``affine`` from meta to a device if there are no edges, because no state contains the empty tensor."""
        if not self.edges and self.affine.is_meta:
            self._set_edges((), torch.empty_like(self.affine, device=device))

    def _edges_of(self, state: Any) -> list[Edge]:
        if isinstance(state, Tensor):  # averaging several states can make the tensor floating-point
            try:
                state = json.loads(bytes(state.detach().cpu().round().to(torch.uint8).tolist()))
            except (ValueError, TypeError, RuntimeError):
                raise ValueError("formulas must hold a JSON text as uint8, but does not") from None
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
        with suppress(ValueError):  # an invalid text is no reason for an error here
            self._read(may_wait=True)
        edges = self._edges
        shown = ", ".join(f"{edge.i}-{edge.j} {edge.name}" for edge in edges[:8])
        more = "" if len(edges) <= 8 else f", and {len(edges) - 8} more"
        return f"{self.in_features}, {self.out_features}" + (f": {shown}{more}" if edges else "")


class _Indices(NamedTuple):
    """Index tensors of the edges. An index that would change nothing is None."""

    ends: Tensor  # [2, E], the inputs and the outputs of the edges
    order: Tensor | None  # [E], the edges grouped by function
    inputs: Tensor | None  # [E], the inputs of the edges in this order
    outputs: Tensor | None  # [E], the outputs of the edges in this order


def _nan_if(changed: Tensor, y: Tensor) -> Tensor:
    """Return a factor that makes values and their derivatives NaN if the bool tensor is True, and 1 otherwise."""
    return y.new_ones(()).masked_fill(changed, torch.nan)


def _any_on(mask: Tensor | None, ends: Tensor) -> bool:
    return mask is None or bool(mask[ends[0], ends[1]].any())


def _numbered(name: str, indices: Iterable[int], size: int) -> dict[int, int]:
    """Validate ``indices`` and return a dictionary from each index to its position."""
    kept = list(indices)
    for index in kept:
        if index >= size:
            raise ValueError(f"{name} must be below {size}, got {index}")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{name} must have each index once, got {kept}")
    return {old: new for new, old in enumerate(kept)}
