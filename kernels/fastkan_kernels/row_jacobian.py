"""Exact Jacobians of row-wise functions by one backward pass, and products with the Jacobians by contractions.

Let row n of the outputs of a model depend on row n of the inputs alone, as in a fit (``model(x) - y``) or in a PINN
(``u_xx + u_yy - f``). The gradient of the sum of all rows with respect to the weights of a layer is then a sum of calls
``G_d(x, g, v)[b,i,o] = sum_n v[n,i] psi_b^(d)(x[n,i]) g[n,o]``. Without the sum over n, every such call is a term of
the Jacobian:

    J[n, (b,i,o)] = sum over calls of  v[n,i] psi_b^(d)(x[n,i]) g[n,o]

A backward pass for a Jacobian therefore stores the operands x, v and g of each call of G, and computes no G. A product
``J^T u`` is G with g times u, and a product ``J t`` is the sum over i of ``v H_d(x, t, g)``, so both are contractions,
which every backend computes, for any depth and any derivatives in the rows.

Parameters other than the weights are treated as follows. A parameter that is broadcast over the rows, such as a bias,
is replaced by one copy for each row (:meth:`Recorder.rows`), and the gradient with respect to the copies is the
Jacobian. For all other parameters, the Jacobian is computed column by column, by differentiating ``J^T u`` with respect
to u, which takes one backward pass for each element of the parameter.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from .autograd import dispatch as routing
from .autograd.functions import WeightGradient
from .backends.cpu.stack import fold_scale_and_mask
from .backends.modes import forward_mode_is_active, functorch_is_active
from .basis import Basis
from .statistics import feature_values
from .trilinear import Operands
from .validation import kind_of

# The maximum number of elements in a block of rows of a dense Jacobian, 16 MiB in float64. With blocks of 64 MiB, the
# diagonal of J^T J takes 2.7 times as long, and a block and its factors need 320 MB instead of 70 MB.
BLOCK_ELEMENTS = 1 << 21
# The maximum number of elements of a dense Jacobian that is stored, 64 MiB in float64.
MAX_KEPT_ELEMENTS = 1 << 23
# The maximum number of elements of the parameters whose Jacobian is computed column by column.
MAX_COLUMNS = 1024
# The maximum error of J^T u that counts as rounding, relative to the terms of J^T u, in units of the square root of
# epsilon.
MAX_MIXING = 100.0
INDEPENDENT = "the residuals do not depend on the parameters by operations that autograd records"
TRANSFORMED = (
    "a layer was differentiated without its autograd Function, as torch.func and forward-mode differentiation do: use "
    "torch.autograd.grad(..., create_graph=True) inside the residuals"
)

_active = threading.local()


def recorder() -> Recorder | None:
    """Return the recorder of the innermost active :func:`record_rows` block of the current thread, or None."""
    return getattr(_active, "recorder", None)


@contextmanager
def record_rows(parameters: Sequence[Tensor], names: Sequence[str] | None = None) -> Iterator[Recorder]:
    """Record the layers of a forward pass, so that Jacobians with respect to ``parameters`` can be computed.

    Layers inside the block compute their outputs from copies of their parameters. Ordinary gradients with respect to
    the parameters are therefore not available for tensors that were computed inside the block. Code that was compiled
    by ``torch.compile`` runs eagerly inside the block, because compiled code cannot be recorded.

    Args:
        parameters: leaf tensors of dtype float32 or float64 that require a gradient. Other leaf tensors that the same
            layers use are treated as constants.
        names: the names of the parameters in error messages, or None.

    Yields:
        A :class:`Recorder`, whose method ``jacobian`` computes the Jacobian of an output.

    Raises:
        TypeError: if a parameter is not a leaf tensor of dtype float32 or float64 that requires a gradient.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> weight = torch.randn(8, 2, 1, requires_grad=True)
        >>> with record_rows([weight]) as rows:
        ...     effective, _ = rows.weights(weight)
        ...     y = contract_out(torch.rand(10, 2), knots, effective, basis=basis_of(knots, 3, "none"))
        >>> rows.jacobian(y).dense().shape
        torch.Size([10, 16])
    """
    before, made = recorder(), Recorder(parameters, names)
    # The stance is set only if the compiler has been imported, because the import takes seconds. Before the import,
    # nothing can have been compiled.
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        _active.recorder = made
        try:
            with _Copying(made):
                yield made
        finally:
            _active.recorder = before


class Recorder:
    """The copies of parameters that layers have used in a forward pass; see :func:`record_rows`."""

    def __init__(self, parameters: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
        self.parameters = list(parameters)
        self.names = [f"parameter {n}" for n in range(len(self.parameters))] if names is None else list(names)
        for parameter in self.parameters:
            is_leaf = isinstance(parameter, Tensor) and parameter.is_leaf and parameter.requires_grad
            if not (is_leaf and parameter.dtype in (torch.float32, torch.float64)):
                kind = f"{parameter.dtype}" if is_leaf else kind_of(parameter)
                if isinstance(parameter, Tensor) and not parameter.requires_grad:
                    kind += " without requires_grad"
                raise TypeError(
                    f"parameters must be leaf tensors of dtype float32 or float64 that require a gradient, got {kind}"
                )
        self._known = {id(parameter) for parameter in self.parameters}
        # Only autograd graphs own the copies that layers use, so the copies are freed with the graphs.
        self._layers: list[tuple[_Layer, list[TensorWeakRef | None]]] = []
        self._copies: list[tuple[Tensor, TensorWeakRef]] = []

    def _are_known(self, *tensors: Tensor | None) -> bool:
        """Check whether at least one tensor is a recorded parameter, and no tensor was computed from other tensors that
        require a gradient.

        Raises:
            RuntimeError: under a transform of ``torch.func`` or forward-mode differentiation.
        """
        given = [each for each in tensors if each is not None and each.requires_grad]
        known = any(id(each) in self._known for each in given)
        if known and (functorch_is_active() or forward_mode_is_active()):
            raise RuntimeError(TRANSFORMED)
        return known and all(each.is_leaf for each in given)

    def weights(
        self,
        weight: Tensor,
        base_weight: Tensor | None = None,
        scale: Tensor | None = None,
        mask: Tensor | None = None,
        count: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weights that a layer multiplies the splines and the base function by.

        Args:
            weight, base_weight, scale, mask: the parameters of the layer, as in :func:`fold_scale_and_mask`. If no
                argument is one of the recorded parameters, the result is that of :func:`fold_scale_and_mask`.
            count: the number of rows if the layer multiplies by the base weights outside of contractions, or None.

        Returns:
            A tuple of the weights of the splines and the weights of the base function. Both must be operands of the
            same contractions. If ``count`` is given, the weights of the base function are instead a tensor
            ``[count, I, O]`` with a copy for each row, and the layer must not pass them to contractions.
        """
        if not self._are_known(weight, base_weight, scale):
            return fold_scale_and_mask(weight, base_weight, scale, mask)
        if count is not None and base_weight is not None:
            copies = self.rows(base_weight, count)
            return self.weights(weight, None, scale, mask)[0], copies if mask is None else copies * mask
        with torch.no_grad():
            folded = fold_scale_and_mask(weight, base_weight, scale, mask)
        leaf, base = (each if each is None else each.detach().requires_grad_() for each in folded)
        assert leaf is not None
        references = [None if each is None else TensorWeakRef(each) for each in (leaf, base)]
        given: list[Any] = [weight, base_weight, scale, mask]
        given = [each if each is None or id(each) in self._known else each.detach() for each in given]
        self._layers.append((_Layer(*given), references))
        return leaf, base

    def rows(self, parameter: Tensor, count: int) -> Tensor:
        """Return a view ``[count, ...]`` of a parameter, with one copy for each row.

        A tensor that is not a recorded parameter is returned unchanged.
        """
        if not self._are_known(parameter):
            return parameter
        copies = parameter.detach().expand(count, *parameter.shape).requires_grad_()
        self._copies.append((parameter, TensorWeakRef(copies)))
        return copies

    def jacobian(self, outputs: Tensor, upstream: Sequence[Tensor] | None = None, check: bool = False) -> RowJacobian:
        """Compute the Jacobian of outputs that were computed inside the block.

        Args:
            outputs: a tensor ``[M]`` or ``[M, C]`` whose row n depends only on row n of the inputs of each layer.
            upstream: a list of tensors with the shape of ``outputs``. Each tensor makes one entry of every row n of
                the Jacobian: the gradient of the sum over c of ``upstream[n, c] outputs[n, c]``. If None, every row
                has an entry for each column of ``outputs``.
            check: whether to verify that every row of the outputs depends on only one row of the inputs. The
                verification takes one more backward pass.

        Returns:
            A :class:`RowJacobian` with M rows, whose entries are those of ``upstream``.

        Raises:
            TypeError, ValueError: if the outputs have another dtype or shape or do not depend on the parameters, or if
                a row depends on more than one row of the inputs.
            RuntimeError: if the layers were differentiated in a way that bypasses the recorder, as ``torch.func`` does.
        """
        check_residuals(outputs)
        if not outputs.requires_grad:
            raise ValueError(f"{INDEPENDENT}, or gradients are turned off, as by torch.no_grad")
        outputs = outputs if outputs.ndim == 2 else outputs.unsqueeze(1)
        if upstream is None:
            unit = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
            upstream = [each.expand_as(outputs) for each in unit]
        else:
            upstream = [each.view_as(outputs) for each in upstream]
        found = RowJacobian(self.parameters, len(outputs), len(upstream))
        foreign: list[tuple[Tensor, Tensor]] = []
        for entry, each in enumerate(upstream):
            direct = self._collect(outputs, each, entry, found)
            foreign = direct or foreign
        found.parts += _columns(outputs, upstream, foreign, dict(zip(map(id, self.parameters), self.names)))
        if not found.parts:
            raise ValueError(INDEPENDENT)
        if check:
            self._check_rows(outputs, upstream, found, foreign)
        return found

    def _alive(self) -> tuple[list[tuple[_Layer, list[Tensor | None]]], list[tuple[Tensor, Tensor]]]:
        """Return the layers with their copies of the weights, and pairs of a parameter and its copies for the rows.

        Entries whose copies are no longer used by any graph are removed.
        """
        layers: list[tuple[_Layer, list[Any]]]
        layers = [(layer, [each and each() for each in references]) for layer, references in self._layers]
        copies = [(parameter, reference()) for parameter, reference in self._copies]
        self._layers = [pair for pair, (_, leaves) in zip(self._layers, layers) if leaves[0] is not None]
        self._copies = [pair for pair, (_, own) in zip(self._copies, copies) if own is not None]
        return [pair for pair in layers if pair[1][0] is not None], [pair for pair in copies if pair[1] is not None]

    def _collect(
        self, outputs: Tensor, upstream: Tensor, entry: int, found: RowJacobian
    ) -> list[tuple[Tensor, Tensor]]:
        """Add the parts of one entry of each row to ``found``, and return pairs of a parameter and the tensor that was
        used in its place, for the parameters whose Jacobian must be computed column by column.

        These are the parameters that are used directly, and those with another number of copies than the outputs have
        rows.
        """
        layers, copies = self._alive()
        leaves = [leaf for _, own in layers for leaf in own if leaf is not None]
        inputs = [*leaves, *(own for _, own in copies), *self.parameters]
        for _, own in layers:
            own[0].weight_gradients = []  # type: ignore[union-attr]
        try:
            gradients = iter(torch.autograd.grad(outputs, inputs, upstream, retain_graph=True, allow_unused=True))
            calls: list[list[WeightGradient]] = [own[0].weight_gradients for _, own in layers]  # type: ignore[union-attr]
        finally:
            for _, own in layers:
                own[0].weight_gradients = None  # type: ignore[union-attr]
        if any(gradient is not None for _, gradient in zip(leaves, gradients)):
            raise RuntimeError(TRANSFORMED)
        for (layer, _), made in zip(layers, calls):
            # The operands of deeper layers are part of the graph, so they are detached in order not to keep it alive.
            part = [call._replace(x=call.x.detach(), v=None if call.v is None else call.v.detach()) for call in made]
            if part:
                found.add(_SplineRows(layer, part, entry), len(part[0].x))
        foreign = []
        for pair, gradient in zip(copies, gradients):
            if gradient is not None and len(gradient) == found.rows:
                found.add(_CopiedRows(pair[0], gradient.flatten(1), entry), found.rows)
            elif gradient is not None:
                foreign.append(pair)
        return foreign + [(each, each) for each, gradient in zip(self.parameters, gradients) if gradient is not None]

    def _check_rows(
        self, outputs: Tensor, upstream: Sequence[Tensor], found: RowJacobian, foreign: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Compare J^T u for a random u with an ordinary backward pass, in which rows may depend on each other.

        Raises:
            ValueError: if the results differ, because then a row of the outputs depends on several rows of the inputs.
        """
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(len(outputs), len(upstream), generator=generator, dtype=torch.float64).to(found.device)
        combined: Any = sum(each * u[:, [entry]].to(each.dtype) for entry, each in enumerate(upstream))
        layers, copies = self._alive()
        inputs = [leaf for _, own in layers for leaf in own if leaf is not None] + [own for _, own in copies]
        if not inputs:
            return
        gradients = iter(torch.autograd.grad(outputs, inputs, combined, retain_graph=True, allow_unused=True))
        true = found.zeros()
        for layer, own in layers:
            by_weight, by_base = (None if leaf is None else next(gradients) for leaf in own)
            layer.add_gradients(by_weight, by_base, true)
        for (parameter, _), gradient in zip(copies, gradients):
            if gradient is not None:
                true[id(parameter)] += gradient.sum(0)
        recorded, sizes = found.zeros(), dict.fromkeys(true, 0.0)
        for part in found.parts:
            for term in part.terms():
                product = found.zeros()
                term.add_rmatvec(u[:, term.entry], product)
                for key, value in product.items():
                    recorded[key] += value
                    sizes[key] += float(value.abs().max()) if value.numel() else 0.0
        limit = MAX_MIXING * max(torch.finfo(each.dtype).eps for each in (outputs, *self.parameters)) ** 0.5
        skipped = {id(parameter) for parameter, _ in foreign}
        for name, parameter in zip(self.names, self.parameters):
            if id(parameter) in skipped or parameter.numel() == 0:
                continue  # The columns of foreign parameters are exact for any function.
            one, other = true[id(parameter)], recorded[id(parameter)]
            # The limit also depends on the sizes of the terms, which may cancel each other up to rounding: u_xy - u_yx.
            if bool((one - other).abs().max() > limit * (one.abs().max() + sizes[id(parameter)])):
                raise ValueError(
                    "a row of the residuals depends on several rows of the inputs, for example by BatchNorm in "
                    f"training or attention over the rows: the Jacobian with respect to {name} with the shape "
                    f"{list(parameter.shape)} is not row-wise"
                )


class _Copying(TorchFunctionMode):
    """A mode in which ``nn.Linear`` and ``nn.LayerNorm`` use a copy of their parameters for each row."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.linear and len(args) >= 2 and id(args[1]) in self.recorder._known and args[0].ndim > 1:
            return self._linear(*args, **kwargs)
        if func is functional.layer_norm and args[0].ndim > len(args[1] if len(args) > 1 else ()):
            return self._layer_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
        y = torch.bmm(y, self.recorder.rows(weight, len(x)).mT)
        if bias is not None:
            y = y + self._broadcast(bias, len(x), y.ndim)
        return y.view(*x.shape[:-1], len(weight))

    def _layer_norm(
        self, x: Tensor, shape, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ):
        y = functional.layer_norm(x, shape, None, None, eps)
        y = y if weight is None else y * self._broadcast(weight, len(x), y.ndim)
        return y if bias is None else y + self._broadcast(bias, len(x), y.ndim)

    def _broadcast(self, parameter: Tensor, count: int, ndim: int) -> Tensor:
        """Return the copies of a parameter with dimensions of size 1 between the rows and the parameter."""
        rows = self.recorder.rows(parameter, count)
        return rows if rows is parameter else rows.view(count, *[1] * (ndim - rows.ndim), *parameter.shape)


class RowJacobian:
    """The Jacobian ``J [M * C, P]`` of row-wise outputs with respect to parameters, stored as operands of contractions.

    Row ``n * C + c`` of J is entry c of row n. The P columns are the elements of all parameters, in order. All results
    are float64. A Jacobian is computed by :meth:`Recorder.jacobian`; see the example of :func:`record_rows`.

    Args:
        parameters: the parameters.
        rows: the number M of rows.
        entries: the number C of entries for each row.
    """

    def __init__(self, parameters: Sequence[Tensor], rows: int, entries: int) -> None:
        self.parameters, self.rows, self.entries = list(parameters), rows, entries
        self.parts: list[_SplineRows | _CopiedRows] = []
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        ends = list(accumulate((parameter.numel() for parameter in self.parameters), initial=0))
        self._places = {id(p): slice(*pair) for p, pair in zip(self.parameters, pairwise(ends))}
        self.shape = rows * entries, ends[-1]
        self._dense: Tensor | None = None  # J, if J is small and keep() has been called

    def add(self, part: _SplineRows | _CopiedRows, rows: int) -> None:
        """Add a part, computed by a layer that was called with the given number of rows.

        Raises:
            ValueError: if the number of rows is not that of the outputs.
        """
        if rows != self.rows:
            raise ValueError(
                f"residuals must have a row for each row of the inputs of the layers, got {self.rows} residuals from a "
                f"layer that was called with {rows} rows: flatten the rows, and return parts with different numbers "
                "of rows as separate tensors"
            )
        self.parts.append(part)

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """Return J, or the part of J that belongs to a slice of the M rows, as a tensor ``[rows * C, P]``."""
        if self._dense is not None:
            return self._dense.view(self.rows, self.entries, -1)[rows].reshape(-1, self.shape[1])
        count = len(range(*rows.indices(self.rows)))
        out = torch.zeros(count, self.entries, self.shape[1], dtype=torch.float64, device=self.device)
        features: dict = {}
        for part in self.parts:
            for parameter, block in part.blocks(rows, features):
                out[:, part.entry, self._places[id(parameter)]] += block.flatten(1)
        return out.view(-1, self.shape[1])

    def gram(self, rows: slice = slice(None)) -> Tensor:
        """Return ``J^T J [P, P]`` for a slice of the M rows, computed from dense blocks of rows."""
        size = self.shape[1]
        total = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for part in self._blocks(rows):
            block = self.dense(part)
            total.addmm_(block.t(), block)
        return total

    def gram_diagonal(self, rows: slice = slice(None)) -> Tensor:
        """Return the diagonal ``[P]`` of ``J^T J`` for a slice of the M rows."""
        total = torch.zeros(self.shape[1], dtype=torch.float64, device=self.device)
        for part in self._blocks(rows):
            total += self.dense(part).square().sum(0)
        return total

    def keep(self) -> None:
        """Store J as a dense matrix if J is small, so that products with J are matrix products."""
        if math.prod(self.shape) <= MAX_KEPT_ELEMENTS:
            kept = torch.empty(self.rows, self.entries, self.shape[1], dtype=torch.float64, device=self.device)
            for part in self._blocks(slice(None)):
                kept[part] = self.dense(part).view(-1, *kept.shape[1:])
            self._dense, self.parts = kept.view(self.shape), []

    def _blocks(self, rows: slice) -> Iterator[slice]:
        """Yield parts of a slice of the M rows, for each of which J fits in a block."""
        start, stop, step = rows.indices(self.rows)
        stride = step * max(1, BLOCK_ELEMENTS // max(1, self.shape[1] * self.entries))
        for first in range(start, stop, stride):
            yield slice(first, min(first + stride, stop), step)

    def matvec(self, tangent: Tensor) -> Tensor:
        """Return ``J t [M * C]`` for ``t [P]``, computed by the contraction H, without memory for J."""
        if self._dense is not None:
            return self._dense @ tangent.double()
        parts = self._split(tangent.double())
        out = torch.zeros(self.rows, self.entries, dtype=torch.float64, device=self.device)
        for part in self.parts:
            out[:, part.entry] += part.matvec(parts)
        return out.flatten()

    def rmatvec(self, u: Tensor) -> Tensor:
        """Return ``J^T u [P]`` for ``u [M * C]``, computed by the contraction G, without memory for J."""
        if self._dense is not None:
            return self._dense.t() @ u.double()
        u, found = u.double().view(self.rows, self.entries), self.zeros()
        for part in self.parts:
            part.add_rmatvec(u[:, part.entry], found)
        return torch.cat([found[id(parameter)].flatten() for parameter in self.parameters])

    def zeros(self) -> dict[int, Tensor]:
        """Return a dictionary with a float64 tensor of zeros for the id of each parameter."""
        return {id(p): torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in self.parameters}

    def _split(self, tangent: Tensor) -> dict[int, Tensor]:
        return {id(p): tangent[self._places[id(p)]].view_as(p) for p in self.parameters}


class _Layer:
    """The parameters of one call of a layer.

    The weights of a layer are ``weight * scale * mask`` and ``base_weight * mask``; see :func:`fold_scale_and_mask`.
    """

    def __init__(self, weight: Tensor, base_weight: Tensor | None, scale: Tensor | None, mask: Tensor | None) -> None:
        self.weight, self.base_weight, self.scale, self.mask = weight, base_weight, scale, mask

    def chain(self, by_weight: Tensor, by_base: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of a parameter and its gradient ``[...]``, given gradients ``[..., K, I, O]`` and ``[..., I, O]``
        with respect to the weights that the contractions used."""
        weight, base_weight, scale, mask = self._wide()
        masked = by_weight if mask is None else by_weight * mask
        if self.weight.requires_grad:
            yield self.weight, masked if scale is None else masked * scale
        if scale is not None and self.scale.requires_grad:  # type: ignore[union-attr]
            yield self.scale, (masked * weight).sum(-3)  # type: ignore[misc]
        if base_weight is not None and self.base_weight.requires_grad:  # type: ignore[union-attr]
            assert by_base is not None
            yield self.base_weight, by_base if mask is None else by_base * mask  # type: ignore[misc]

    def add_gradients(self, by_weight: Tensor | None, by_base: Tensor | None, out: dict[int, Tensor]) -> None:
        """Add the gradients of the parameters to ``out``, given those of the weights that the contractions used."""
        if by_weight is None and by_base is None:
            return
        by_weight = torch.zeros_like(self.weight) if by_weight is None else by_weight
        if by_base is None and self.base_weight is not None:
            by_base = torch.zeros_like(self.base_weight)
        for parameter, gradient in self.chain(by_weight, by_base):
            out[id(parameter)] += gradient

    def tangents(self, tangents: Mapping[int, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the tangents of the weights that the contractions used, given the tangents of the parameters."""
        weight, base_weight, scale, mask = self._wide()

        def tangent(parameter: Tensor | None) -> Tensor | None:
            return None if parameter is None else tangents.get(id(parameter))

        of_weight, of_scale, of_base = tangent(self.weight), tangent(self.scale), tangent(self.base_weight)
        total = torch.zeros_like(weight)
        if of_weight is not None:
            total += of_weight if scale is None else of_weight * scale
        if of_scale is not None:
            total += weight * of_scale
        base = None if base_weight is None else torch.zeros_like(base_weight) if of_base is None else of_base
        return fold_scale_and_mask(total, base, None, mask)

    def _wide(self) -> list[Any]:
        given = self.weight, self.base_weight, self.scale, self.mask
        return [None if each is None else each.detach().double() for each in given]


class _SplineRows(NamedTuple):
    """The part of a Jacobian for the parameters of one call of a layer."""

    layer: _Layer
    calls: list[WeightGradient]
    entry: int

    def terms(self) -> list[_SplineRows]:
        """Return a part for each call of G."""
        return [self._replace(calls=[call]) for call in self.calls]

    def blocks(self, rows: slice, features: dict) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of a parameter and its Jacobian ``[rows, *shape]`` for a slice of the rows."""
        factors: dict[Any, Tensor] = {}  # sums of v g [rows, I, O] over calls with the same features
        for call in self.calls:
            x, v, g, basis = _wide(call, rows)
            key = call.x.data_ptr(), x.shape, call.x.stride(), call.knots.data_ptr(), basis, call.derivative
            if key not in features:
                backend = "cpu" if x.is_cpu else "dense"
                features[key] = feature_values(x, call.knots.double(), basis, call.derivative, backend)
            product = g.unsqueeze(1) if v is None else v.unsqueeze(2) * g.unsqueeze(1)
            factors[key] = factors[key] + product if key in factors else product
        found: Any = None
        for key, factor in factors.items():
            psi, factor = features[key].unsqueeze(3), factor.unsqueeze(1)
            found = psi * factor if found is None else found.addcmul_(psi, factor)
        count = self.layer.weight.shape[0]
        yield from self.layer.chain(found[:, :count], None if found.shape[1] == count else found[:, count])

    def matvec(self, tangents: Mapping[int, Tensor]) -> Tensor:
        weight, base_weight = self.layer.tangents(tangents)
        total = torch.zeros((), dtype=torch.float64, device=weight.device)
        for call in self.calls:
            x, v, g, basis = _wide(call)
            h = _contract("H", x, call, Operands(None, weight, base_weight, g), basis)
            total = total + (h if v is None else h * v).sum(1)
        return total

    def add_rmatvec(self, u: Tensor, out: dict[int, Tensor]) -> None:
        for call in self.calls:
            x, v, g, basis = _wide(call)
            by_weight, by_base = _contract("G", x, call, Operands(v, g=g * u.unsqueeze(1)), basis)
            self.layer.add_gradients(by_weight, by_base, out)


class _CopiedRows(NamedTuple):
    """The part of a Jacobian for a parameter whose gradient ``[M, numel]`` is known for every row."""

    parameter: Tensor
    values: Tensor
    entry: int

    def terms(self) -> list[_CopiedRows]:
        return [self]

    def blocks(self, rows: slice, features: dict) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.parameter, self.values[rows].double()

    def matvec(self, tangents: Mapping[int, Tensor]) -> Tensor:
        return self.values.double() @ tangents[id(self.parameter)].flatten()

    def add_rmatvec(self, u: Tensor, out: dict[int, Tensor]) -> None:
        out[id(self.parameter)] += (u @ self.values.double()).view_as(self.parameter)


def _wide(call: WeightGradient, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None, Tensor, Basis]:
    """Return x, v and g of a call in float64 for a slice of the rows, and a basis for float64."""
    basis = call.basis._replace(matmul_dtype=None)
    if call.x.dtype != torch.float64:  # Knots rounded to float32 are not equally spaced in float64.
        basis = Basis(basis.order, basis.base)
    x, v, g = (None if each is None else each.detach()[rows].double() for each in (call.x, call.v, call.g))
    return x, v, g, basis  # type: ignore[return-value]


def _contract(name: str, x: Tensor, call: WeightGradient, operands: Operands, basis: Basis):
    with torch.no_grad():
        return routing.contract(name, x, call.knots.double(), operands, basis, call.derivative)


def _columns(
    outputs: Tensor,
    upstream: Sequence[Tensor],
    foreign: Sequence[tuple[Tensor, Tensor]],
    names: Mapping[int, str],
) -> list[_CopiedRows]:
    """Compute Jacobians column by column, by differentiating ``J^T u`` with respect to u.

    Args:
        foreign: pairs of a parameter and the tensor that was used in its place, which is the parameter itself or
            consists of copies of the parameter.
        names: the names of the parameters in error messages, by their ids.

    Raises:
        ValueError: if the parameters have more than ``MAX_COLUMNS`` elements.
    """
    if not foreign:
        return []
    count = sum(parameter.numel() for parameter, _ in foreign)
    if count > MAX_COLUMNS:
        described = ", ".join(f"{names[id(parameter)]} {list(parameter.shape)}" for parameter, _ in foreign)
        raise ValueError(
            f"parameters outside of fastkan's layers, nn.Linear and nn.LayerNorm may have at most {MAX_COLUMNS} "
            f"elements, got {count} in {described}"
        )
    u = torch.zeros_like(outputs, requires_grad=True)
    with torch.enable_grad():
        products = torch.autograd.grad(outputs, [used for _, used in foreign], u, create_graph=True)
    found = []
    for (parameter, used), product in zip(foreign, products):
        product = product if used is parameter else product.sum(0)
        if not product.requires_grad:  # The gradient is 0 everywhere, for example because the parameter is rounded.
            continue
        columns = [torch.autograd.grad(each, u, retain_graph=True)[0] for each in product.flatten()]
        jacobian = torch.stack(columns, 2)
        found += [
            _CopiedRows(parameter, (jacobian * each.unsqueeze(2)).sum(1), entry) for entry, each in enumerate(upstream)
        ]
    return found


def check_residuals(residuals: Tensor) -> None:
    """Check the type and the shape of row-wise residuals.

    Raises:
        TypeError, ValueError: if the residuals are not a tensor ``[M]`` or ``[M, C]`` of dtype float32 or float64 with
            at least one element.
    """
    if not isinstance(residuals, Tensor):
        raise TypeError(f"residuals must be a torch.Tensor, got {kind_of(residuals)}")
    if residuals.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"residuals must have the dtype float32 or float64, got {residuals.dtype}")
    if residuals.ndim not in (1, 2) or residuals.numel() == 0:
        raise ValueError(
            f"residuals must have the shape [M] or [M, C] with at least one row, got {list(residuals.shape)}"
        )
