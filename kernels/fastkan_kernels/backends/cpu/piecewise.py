"""The contractions F_d, G_d and H_d for layers with few edges, computed from the polynomials of the edge functions.

Between two neighbouring knots every edge function is a polynomial. The coefficients of the polynomials are a small
matrix product of the weights and a table that depends only on the knots (:mod:`...bspline.piecewise`), so the values of
all edges at the rows,

    E_d[i,o,n] = sum_b psi_b^(d)(x[n,i]) W[b,i,o],

are sums of k + 1 - d terms each, for any number of splines. F_d is the sum of v E_d over i, and H_d is the sum of g E_d
over o. G_d sums powers of the position, multiplied by v g, over the rows of each cell, and multiplies the sums by the
table.

Contractions at the same rows share intermediate results (the cells of the rows, powers, base functions, and E_d for the
most recent weights), which are cached with the rows. The backward pass of F_0 computes G_0 and H_1 with the object that
the forward pass created. A graph of higher derivatives, such as the training step of a PINN with about twenty
contractions at one batch, uses one object for all contractions. The arrays are NumPy arrays, because a NumPy call takes
a third of the time of a PyTorch call, and NumPy compares arrays faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...basis import Basis
from ...bspline.cox_de_boor import base_function, check_base_derivative, silu_derivative
from ...bspline.piecewise import MAX_DENSE_CELLS, Pieces, pieces_of
from ...trilinear import CONTRACTIONS, Operands, gradients
from ..modes import process_group_exists
from . import selection

# The largest numbers of multiplications for which OpenBLAS uses one thread, in a product of two matrices and in a
# product of a matrix and a vector.
MAX_OWN_PRODUCTS, MAX_OWN_VECTOR_PRODUCTS = 3 << 18, 1 << 13
# A number outside every grid that replaces an infinite x, because the product of 0 and a finite number is 0.
BEYOND = 1e18
# The maximum number of knots in all inputs together. The tables have at most 36 numbers for each knot.
MAX_KNOTS = 1 << 14
# The factor by which a contraction is cheaper in a graph of derivatives, where contractions share intermediate results.
SHARING = 4
# G uses spline values instead of powers if there are more than MAX_POWERS powers, over all outputs, for each spline.
MAX_POWERS = 2
# The number of values in the largest arrays of a block, chosen such that the arrays fit into the cache of a CPU core.
BLOCK_VALUES = 1 << 19
# The maximum number of values in the largest arrays of all cached blocks together.
CACHED_VALUES = 1 << 23
MIN_ROWS = 256  # The minimum number of rows in a block.
# The maximum number of spline values that are cached with the rows (16 MiB in float32).
MAX_SPLINES = 1 << 22
# The number of outputs for each spline above which products with all splines are faster than polynomials.
MANY_OUTPUTS = 0.6
# The size in bytes of a block that is freed to raise a limit of glibc, which adapts the limit to blocks below 32 MiB.
SETTLING_BYTES = 31 << 20
WHOLE = slice(None)
Array = Any  # The type is numpy.ndarray, but the functions import NumPy only when they run.


class Location(NamedTuple):
    """The cell of the knots that contains each input value, and the position of the value in the cell.

    Attributes:
        inside: indicators ``[I, C, N]``, which are 1 in the cell that contains the value and 0 in the other cells.
        rate: the reciprocal ``[I, N]`` of the width of the cell.
        powers: powers ``[k + 1, I, N]`` of the distance from the middle of the cell, in cell widths (-1/2 to 1/2).
        within: the input values ``[I, N]``, clipped to the interval from ``-BEYOND`` to ``BEYOND``.
        finite: whether all input values are finite.
    """

    inside: Array
    rate: Array
    powers: Array
    within: Array
    finite: bool


class EdgeValues:
    """A cache for the values and the derivatives of edge functions at the rows of a block, for one set of weights."""

    def __init__(self, weight: Array, base_weight: Array | None) -> None:
        self.given_weight, self.given_base = weight, base_weight
        self.weight, self.base_weight = weight.copy(), None if base_weight is None else base_weight.copy()
        self.coefficients: Array | None = None  # The shape is [I, O, k + 1, N].
        self.values: dict[int, Array] = {}  # The dictionary maps d to E_d [I, O, N].

    def are_of(self, weight: Array, base_weight: Array | None) -> bool:
        """Whether ``weight`` and ``base_weight`` have the same values as the weights the cache was computed from."""
        if (self.base_weight is None) != (base_weight is None) or self.weight.shape != weight.shape:
            return False
        return (self.weight == weight).all() and (base_weight is None or (self.base_weight == base_weight).all())


class Block:
    """A block of rows ``x [I, N]`` that are processed together, with a cache of results that contractions share.

    Cached arrays are never modified, so several threads can run a backward pass through one graph.

    Args:
        x: the input values ``[I, N]``.
        tables: the table of the polynomials of all splines.
        basis: the spline order and the base function.
        by_splines: whether F_0 and G_0 are matrix products with the spline values at the rows. The matrix products are
            the faster algorithm once the spline values are cached.
    """

    def __init__(self, x: Array, tables: Pieces, basis: Basis, by_splines: bool = False) -> None:
        self.x, self.tables, self.basis, self.by_splines = x, tables, basis, by_splines
        self._location: Location | None = None
        self._last_edges: EdgeValues | None = None
        # The factors [k + 1 - d, I, N] of the coefficients of the powers d to k in the derivative of order d.
        self._terms: dict[int, Array] = {}
        # The derivative [I, N] of order d of the base function.
        self._bases: dict[int, Array | None] = {}
        self._logistic: Array | None = None
        # The derivative [I, K, N] of order d of all splines.
        self._splines: dict[int, Array] = {}
        self._joined_features: Array | None = None

    def contract(self, name: str, operands: Operands, derivative: int) -> Any:
        """Return the contraction F_d ``[O, N]``, G_d as a pair ``[K, I, O]`` and ``[I, O]``, or H_d ``[I, N]``.

        Args:
            name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
            operands: NumPy arrays. The shape of v is ``[I, N]``. The shape of g is ``[O, N]``, or ``[I, O, N]`` if g is
                different for each input.
            derivative: the order d of the contraction.
        """
        import numpy as np

        v, weight, base_weight, g = operands
        if g is not None and g.ndim == 2:
            g = g[None]
        if name == "G":
            return self._contract_weight(g if v is None else v[:, None] * g, derivative)
        if name == "H" and derivative == 0 and base_weight is not None:
            location, base = self._location or self._locate(), self._base(0)
            # At an infinite x some edges would be inf and others -inf, so the base function is factored out of the sum.
            if not location.finite and base is not None:
                h = np.einsum("ion,ion->in", self.edges(weight, None, 0), g)
                return h + base * (base_weight[:, None] @ g)[:, 0]
        # This branch computes the sum over the edges without the values of the individual edges.
        if name == "F" and v is None and derivative <= self.basis.order:
            if derivative == 0 and self.by_splines:
                psi, joined = self._features(), _joined_weights(weight, base_weight)
                return product(joined.transpose(2, 1, 0).reshape(weight.shape[2], -1), psi.reshape(-1, psi.shape[2]))
            coefficients = self._edge_coefficients(self._edges_of(weight, base_weight))
            y = np.einsum("iopn,pin->on", coefficients[:, :, derivative:], self._terms_of(derivative))
            if base_weight is not None and (base := self._base(derivative)) is not None:
                y += product(base_weight.T, base)
            return y
        edges = self.edges(weight, base_weight, derivative)
        if name == "H":
            return np.einsum("ion,ion->in", edges, g)
        return np.add.reduce(edges, 0) if v is None else np.einsum("ion,in->on", edges, v)

    def edges(self, weight: Array, base_weight: Array | None, derivative: int) -> Array:
        """Return the values E_d ``[I, O, N]`` of all edges. The caller must not modify the returned array."""
        import numpy as np

        last = self._edges_of(weight, base_weight)
        found = last.values.get(derivative)
        if found is not None:
            return found
        if derivative > self.basis.order:
            found = np.repeat(self._zero()[:, None], weight.shape[2], 1)
        elif derivative == 0 and self.by_splines:
            joined = _joined_weights(weight, base_weight)
            last.values[0] = product(joined.transpose(1, 2, 0), self._features())
            return last.values[0]
        else:
            coefficients = self._edge_coefficients(last)[:, :, derivative:]
            found = np.einsum("iopn,pin->ion", coefficients, self._terms_of(derivative))
        if base_weight is not None and (base := self._base(derivative)) is not None:
            found += base[:, None] * base_weight[:, :, None]
        last.values[derivative] = found
        return found

    def _edges_of(self, weight: Array, base_weight: Array | None) -> EdgeValues:
        """Return the cache for the given weights.

        The cache of the previous call is reused if the weights are the same arrays or have equal values. The weights
        can differ between two calls because a derivative of a contraction may have a different tensor as its operand W.
        """
        last = self._last_edges
        if last is not None:
            same = weight is last.given_weight and base_weight is last.given_base
            if same or last.are_of(weight, base_weight):
                return last
        self._last_edges = last = EdgeValues(weight, base_weight)
        return last

    def _edge_coefficients(self, edges: EdgeValues) -> Array:
        if edges.coefficients is None:
            edges.coefficients = self._coefficients(self.tables.polynomials(edges.weight))
        return edges.coefficients

    def _contract_weight(self, upstream: Array, derivative: int) -> tuple[Array, Array | None]:
        """Return G_d for ``upstream [I or 1, O, N]``, the product of v and g."""
        import numpy as np

        inputs, rows = self.x.shape
        outputs, order, count = upstream.shape[1], self.basis.order, self.tables.count
        # Computing the spline values at the rows is worthwhile in a graph of derivatives, where several contractions
        # use the spline values.
        many = derivative > 0 and outputs * (order + 1) > MAX_POWERS * count and count <= MAX_DENSE_CELLS
        if derivative == 0 and self.by_splines:
            psi = self._features()
            if len(upstream) == 1:
                both = product(psi.reshape(-1, rows), upstream[0].T).reshape(inputs, -1, outputs)
            else:
                both = product(psi, upstream.transpose(0, 2, 1))
            both = both.transpose(1, 0, 2)
            return both[:count].copy(), both[count].copy() if len(both) > count else None
        if derivative > order:
            splines = np.repeat((self._zero()[:, None] * upstream).sum(2)[None], count, 0)
        elif many:
            by_input = product(self._spline_values(derivative), upstream.transpose(0, 2, 1))
            splines = np.ascontiguousarray(by_input.transpose(1, 0, 2))
        else:
            terms = self._terms_of(derivative).transpose(1, 0, 2)[:, None]
            raised = terms * upstream[:, :, None]
            inside = (self._location or self._locate()).inside
            sums = product(raised.reshape(inputs, -1, rows), inside.transpose(0, 2, 1))
            # The shape of the argument is [I, O, (k + 1 - d) C].
            splines = self.tables.splines(sums.reshape(inputs, outputs, -1))
        base = self._base(derivative)
        return splines, None if base is None else product(upstream, base[:, :, None]).reshape(inputs, outputs)

    def _locate(self) -> Location:
        self._coefficients(None)
        assert self._location is not None
        return self._location

    def _coefficients(self, polynomials: Array | None) -> Array:
        """Return coefficients ``[I, R, k + 1, N]`` of the ``polynomials [I or 1, R (k + 1), C]`` in the cell of each
        row.

        The coefficients are selected by a matrix product with the indicators of the cells that contain the rows. The
        first call of the method also determines the cells. If ``polynomials`` is None, R is 0.
        """
        import numpy as np

        (inputs, rows), order = self.x.shape, self.basis.order
        if self._location is not None:
            return product(polynomials, self._location.inside).reshape(inputs, -1, order + 1, rows)
        x, tables = self.x, self.tables
        finite = bool(np.isfinite(np.add.reduce(x, None)))
        within = x if finite else np.clip(x, -BEYOND, BEYOND)
        picks = tables.cells
        if polynomials is not None:
            picks = np.empty(
                (max(len(picks), len(polynomials)), 2 + polynomials.shape[1], tables.cells.shape[2]), x.dtype
            )
            picks[:, :2] = tables.cells
            picks[:, 2:] = polynomials
        beyond = within[:, None] >= tables.knots
        inside = (beyond[:, :-1] != beyond[:, 1:]).astype(x.dtype)
        picked = product(picks, inside)
        rate = picked[:, 1] if finite else np.where(np.isnan(x), x, picked[:, 1])  # The slope at NaN is NaN.
        powers = np.empty((order + 1, inputs, rows), x.dtype)
        powers[0] = 1
        u = np.subtract(within, picked[:, 0], out=powers[1])
        u *= rate
        for power in range(2, order + 1):
            np.multiply(powers[power - 1], u, out=powers[power])
        self._location = Location(inside, rate, powers, within, finite)
        return picked[:, 2:].reshape(inputs, -1, order + 1, rows)

    def _sum(self, coefficients: Array, derivative: int) -> Array:
        """Return the derivatives ``[I, R, N]`` with respect to x of the polynomials with the given coefficients."""
        import numpy as np

        return np.einsum("irpn,pin->irn", coefficients[:, :, derivative:], self._terms_of(derivative))

    def _terms_of(self, derivative: int) -> Array:
        if derivative == 0:
            return (self._location or self._locate()).powers
        if derivative not in self._terms:
            _, rate, powers, _, _ = self._location or self._locate()
            terms = powers[: len(powers) - derivative] * _falling(len(powers) - 1, derivative, powers.dtype.char)
            for _ in range(derivative):
                terms *= rate  # Repeated multiplication takes a tenth of the time of NumPy's power.
            self._terms[derivative] = terms
        return self._terms[derivative]

    def _spline_values(self, derivative: int) -> Array:
        """Return the derivative psi^(d) ``[I, K, N]`` of all splines."""
        import numpy as np

        if derivative in self._splines:
            return self._splines[derivative]
        tables, (inputs, active, _, cells) = self.tables, self.tables.local.shape
        if cells <= MAX_DENSE_CELLS:
            found = self._sum(self._coefficients(tables.table.reshape(inputs, -1, cells)), derivative)
        else:  # The values of the k + 1 active splines of each row are inserted into the array of all splines.
            local = self._sum(self._coefficients(tables.local.reshape(inputs, -1, cells)), derivative)
            inside, *_, finite = self._location or self._locate()
            cell = (inside * np.arange(cells)[:, None]).sum(1).astype(np.int64)  # The index is 0 outside the grid.
            found = np.zeros((len(self.x), tables.count + 2 * tables.order, self.x.shape[1]), self.x.dtype)
            np.put_along_axis(found, cell[:, None] + np.arange(active)[:, None], local, 1)
            found = found[:, tables.order : tables.order + tables.count]
            if not finite:
                found = np.where(np.isnan(self.x)[:, None], np.nan, found)
        self._splines[derivative] = found
        return found

    def _features(self) -> Array:
        """Return the features ``[I, P, N]``: all splines, and then the base function unless the base is ``"none"``."""
        import numpy as np

        if self._joined_features is None:
            psi, base = self._spline_values(0), self._base(0)
            self._joined_features = psi if base is None else np.concatenate([psi, base[:, None]], 1)
        return self._joined_features

    def _base(self, derivative: int) -> Array | None:
        """Return the derivative ``[I, N]`` of the base function, or None if the base is ``"none"``."""
        if derivative not in self._bases:
            self._bases[derivative] = self._base_values(derivative)
        return self._bases[derivative]

    def _base_values(self, derivative: int) -> Array | None:
        import numpy as np

        name, (_, _, _, within, finite) = self.basis.base, self._location or self._locate()
        if derivative > 1:
            check_base_derivative(name, derivative)
        if name == "none":
            return None
        if name != "silu":
            if name == "identity" and derivative == 0:
                return within if finite else self.x
            return base_function(torch.from_numpy(self.x), name, derivative).numpy()
        if self._logistic is None:
            self._logistic = torch.from_numpy(within).sigmoid().numpy()
        logistic = self._logistic
        if derivative == 0:
            value = within * logistic
            return value if finite else np.where(self.x > BEYOND, self.x, value)
        rest = 1 - logistic if derivative == 1 else torch.from_numpy(-within).sigmoid().numpy()
        return silu_derivative(within, logistic, rest, derivative)

    def _zero(self) -> Array:
        """Return a derivative of a spline that is higher than the spline order: 0, or NaN where x is NaN."""
        import numpy as np

        return np.where(np.isnan(self.x), self.x, self.x.dtype.type(0))


class Piecewise:
    """The contractions F_d, G_d and H_d at rows ``x [I, N]``, in blocks of rows that fit into the cache of a CPU core.

    The first blocks keep their arrays, up to :data:`CACHED_VALUES` numbers in total. The remaining blocks are created
    again for each use. Creating blocks again makes a training step up to 1.5 times as long, but the memory use stays
    bounded for any number of rows.

    Args:
        x: a contiguous array ``[I, N]``, which must not be modified afterwards.
        tables: the table of the polynomials of all splines.
        basis: the spline order and the base function.
        outputs: the number of outputs O of the layer.
        by_splines: an argument with the same meaning as in :class:`Block`. If True, all rows are in one block, so that
            all spline values are cached.
    """

    def __init__(self, x: Array, tables: Pieces, basis: Basis, outputs: int, by_splines: bool = False) -> None:
        self.x, self.tables, self.basis, self.by_splines = x, tables, basis, by_splines
        _settle_allocator()
        rows = x.shape[1]
        count, cached = block_counts(rows, len(x), outputs, tables.local.shape[3], basis.order)
        if by_splines:  # All spline values must stay cached, so there is one block.
            count = cached = 1
        self._again: list[slice] = []
        self._input_moments: Moments | None = None
        if count == 1:
            self._cached = [(WHOLE, Block(x, tables, basis, by_splines))]
        else:
            parts = [slice(rows * n // count, rows * (n + 1) // count) for n in range(count)]
            self._cached = [(part, self._block(part)) for part in parts[:cached]]
            self._again = parts[cached:]

    def _block(self, part: slice) -> Block:
        return Block(self.x[:, part].copy(), self.tables, self.basis, self.by_splines)

    def blocks(self) -> Iterable[tuple[slice, Block]]:
        """Return pairs of a slice of rows and a block. Blocks that are not cached are created during the iteration."""
        if not self._again:
            return self._cached
        return chain(self._cached, ((part, self._block(part)) for part in self._again))

    def input_moments(self) -> Moments:
        """Return the moments of each input over the rows."""
        if self._input_moments is None:
            self._input_moments = Moments()
            self._input_moments.add(self.x)
        return self._input_moments

    def vjp(
        self,
        name: str,
        full: Operands,
        wanted: Collection[str],
        derivative: int,
        add: Callable[[Block, Array], Array] | None = None,
    ) -> dict[str, Any]:
        """Return the gradients of a contraction, in the form that :func:`.trilinear.gradients` returns.

        Args:
            name, full, wanted, derivative: arguments with the same meaning as in :func:`.trilinear.gradients`.
            add: a function ``add(block, g)`` that returns the upstream gradient to use for a block in place of g.
        """
        found: list[dict[str, Any]] = []
        for part, block in self.blocks():
            own = full if part is WHOLE else _rows(full, part)
            if add is not None:
                own = own._replace(g=add(block, own.g))
            found.append(gradients(name, own, wanted, derivative, block.contract))
        return found[0] if len(found) == 1 else {by: _joined(by, [each[by] for each in found]) for by in wanted}


def block_counts(rows: int, inputs: int, outputs: int, cells: int, order: int) -> tuple[int, int]:
    """Return a tuple of the number of blocks and the number of cached blocks. Both depend only on sizes, so that inputs
    of one shape are always computed in the same order, with bit-identical results."""
    terms = outputs * (order + 1)
    values = rows * inputs * (cells + 2 * terms)
    count = 1 if values <= CACHED_VALUES else -(-values // BLOCK_VALUES)
    if cells <= MAX_DENSE_CELLS:  # Smaller blocks have smaller products, which NumPy computes faster than PyTorch.
        count = max(count, min(rows // MIN_ROWS, -(-rows * cells * (terms + 2) // MAX_OWN_PRODUCTS)))
    return count, count if values <= CACHED_VALUES else max(1, count * CACHED_VALUES // values)


def splines_pay(values: int, outputs: int, tables: Pieces) -> bool:
    """Whether matrix products with the spline values are faster than polynomials for a training step without H_1."""
    dense = outputs > MANY_OUTPUTS * tables.count and tables.local.shape[3] <= MAX_DENSE_CELLS
    return dense and values * (tables.count + 1) <= MAX_SPLINES


def _joined_weights(weight: Array, base_weight: Array | None) -> Array:
    """Return the weights ``[P, I, O]`` of all features: the splines, followed by the base function."""
    import numpy as np

    return weight if base_weight is None else np.concatenate([weight, base_weight[None]])


def _rows(operands: Operands, part: slice) -> Operands:
    """Return the operands restricted to a slice of the rows."""
    v, weight, base_weight, g = operands
    return Operands(None if v is None else v[:, part], weight, base_weight, None if g is None else g[..., part])


def _joined(what: str, parts: list[Any]) -> Any:
    """Combine the results of all blocks. Results for ``"W"`` are added, and other results are concatenated by rows."""
    import numpy as np

    if what != "W":
        return np.concatenate(parts, -1)
    splines, bases = zip(*parts)
    return sum(splines[1:], splines[0]), None if bases[0] is None else sum(bases[1:], bases[0])


class Moments:
    """The mean and the sum of squared deviations of each column, computed from blocks of rows.

    Blocks are combined by the formula of Chan, Golub and LeVeque (Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances, 1979). The first row is subtracted from all rows, so that the standard deviation of a
    constant column is exactly 0.
    """

    rows = 0
    only: Array | None = None  # The centred values are stored if there is only one block.

    def add(self, values: Array) -> None:
        """Add a block of rows with values ``[..., N]``."""
        import numpy as np

        if self.rows == 0:
            self.first = values[..., :1].copy()
        apart = values - self.first
        rows = apart.shape[-1]
        mean = np.add.reduce(apart, -1, keepdims=True) / values.dtype.type(rows)
        apart -= mean
        squares = np.einsum("...n,...n->...", apart, apart)
        if self.rows == 0:
            self.rows, self.mean, self.squares, self.only = rows, mean, squares, apart
            return
        joined, step = self.rows + rows, mean - self.mean.astype(np.float64)
        self.squares = self.squares + squares + step[..., 0] ** 2 * (self.rows * rows / joined)
        self.mean = self.mean + step * (rows / joined)
        self.rows, self.only = joined, None

    @cached_property
    def std(self) -> Array:
        """The standard deviation of each column, which may be read after all blocks have been added."""
        import numpy as np

        return np.sqrt(self.squares / (self.rows - 1)).astype(self.first.dtype, copy=False)

    def share(self, by_std: Array) -> Array:
        """Return the factors of centred values in the gradient of the standard deviations; 0 for constant columns."""
        import numpy as np

        by_std, std = by_std / (self.rows - 1), self.std
        return by_std / std if std.all() else np.divide(by_std, std, out=np.zeros_like(by_std), where=std != 0)

    def centred(self, values: Array) -> Array:
        """Return the values of a block minus the mean."""
        apart = values - self.first
        apart -= self.mean.astype(apart.dtype, copy=False)
        return apart


@cache
def _settle_allocator() -> None:
    """Make glibc keep up to 62 MiB of freed memory for the next pass.

    When the free memory at the top of the heap exceeds twice the size of the largest block that was freed so far, glibc
    returns the free memory to the operating system. If all arrays have about 100 KiB, every training step would return
    the memory and then cause a page fault for each 4 KiB page, which takes up to half of the time of the step. Freeing
    one large block, whose pages are never written, raises the limit. The call has no effect on other allocators.
    """
    import numpy as np

    np.empty(SETTLING_BYTES, np.uint8)


def product(one: Array, other: Array) -> Array:
    """Return the matrix product, or a batch of matrix products, of two arrays.

    NumPy's own products use several threads above a certain size, which takes ten times as long while another process
    computes. Such products of matrices are computed by PyTorch, which uses the number of threads that PyTorch is set
    to, and products with a vector are computed by einsum, which uses one thread.
    """
    import numpy as np

    if one.shape[-1] == 1:
        return one * other
    size = one.shape[-2] * one.shape[-1] * other.shape[-1]
    if one.shape[-2] == 1 or other.shape[-1] == 1:
        return one @ other if size <= MAX_OWN_VECTOR_PRODUCTS else np.einsum("...ij,...jk->...ik", one, other)
    return one @ other if size <= MAX_OWN_PRODUCTS else (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()


@cache
def _falling(order: int, derivative: int, dtype: str) -> Array:
    """Return the factors ``[k + 1 - d, 1, 1]`` of the powers d to k after the powers are differentiated d times."""
    import numpy as np

    powers = range(derivative, order + 1)
    return np.array([math.perm(power, derivative) for power in powers], dtype)[:, None, None]


# -- interface for tensors ---------------------------------------------------------------------------------------


class PiecewiseTensors:
    """The contractions of :class:`Piecewise` for tensors v ``[N, I]`` and g ``[N, O]`` instead of arrays."""

    def __init__(self, rows: Piecewise) -> None:
        self.rows = rows

    def contract(self, name: str, operands: Operands, derivative: int) -> Any:
        """Return the contraction F_d ``[N, O]``, G_d as a pair ``[K, I, O]`` and ``[I, O]``, or H_d ``[N, I]``."""
        given, found = _as_arrays(operands), []
        with quiet():
            for part, block in self.rows.blocks():
                own = given if part is WHOLE else _rows(given, part)
                found.append(block.contract(name, own, derivative))
        return _as_tensors(found[0] if len(found) == 1 else _joined(CONTRACTIONS[name].free, found))

    def vjp(self, name: str, full: Operands, wanted: Collection[str], derivative: int) -> dict[str, Any]:
        """Return the gradients of a contraction as :func:`.trilinear.gradients` does, without an autograd graph."""
        with quiet():
            found = self.rows.vjp(name, _as_arrays(full), wanted, derivative)
        return {by: _as_tensors(value) for by, value in found.items()}


def rows_of(
    cached: dict, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, *derivatives: int
) -> PiecewiseTensors | None:
    """Return an object that computes contractions at the rows x, or None if the piecewise implementation is slower than
    another implementation or does not support the arguments.

    Args:
        cached: a dictionary in which the object is stored for further contractions with the same x, knots and basis.
            The entry ``"pieces"`` is a function that returns the tables of the knots, or None. The entry
            ``"fixed_x"`` is true if gradients will be computed, but no gradient with respect to x.
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, M]`` of the splines.
        operands: the operands of all contractions to come, as plain tensors.
        basis: the spline order and the base function.
        derivatives: the orders d of the contractions to come, in ascending order.
    """
    dtype = knots.dtype
    for each in (x, *operands):
        if each is not None and each.dtype is not dtype:
            return None
    found: PiecewiseTensors | None = cached.get("rows")
    if found is None:
        outputs = (operands.g if operands.weight is None else operands.weight).shape[-1]
        (inputs, count), rows = knots.shape, x.shape[0]
        if not has_sizes(rows, inputs, count, outputs, basis, x.dtype):
            return None
        if not _pays(rows, inputs, count, outputs, basis, derivatives[0]):
            return None
        pieces = cached.get("pieces")
        tables = pieces_of(knots, basis) if pieces is None else pieces()
        by_splines = cached.get("fixed_x", False) and splines_pay(x.numel(), outputs, tables)
        found = cached["rows"] = PiecewiseTensors(Piecewise(columns(x), tables, basis, outputs, by_splines))
    highest = found.rows.tables.highest
    return found if all(d <= highest or d > basis.order for d in derivatives) else None


def has_sizes(rows: int, inputs: int, knots: int, outputs: int, basis: Basis, dtype: torch.dtype) -> bool:
    """Whether the result is not empty, the dtype is float32 or float64, and the tables have a moderate size."""
    if inputs * knots > MAX_KNOTS:
        return False
    return rows * inputs * outputs > 0 and basis.matmul_dtype is None and dtype in (torch.float32, torch.float64)


def _pays(rows: int, inputs: int, knots: int, outputs: int, basis: Basis, derivative: int) -> bool:
    count, cached = block_counts(rows, inputs, outputs, knots - 1, basis.order)
    contractions = SHARING if derivative > 0 and cached == count else 1
    layer = rows, inputs, outputs, knots - basis.order - 1, basis
    return selection.piecewise_pays([layer], contractions=contractions)


def quiet() -> Any:
    """Return a context manager that silences the warnings of NumPy about results that are not finite."""
    import numpy as np

    return np.errstate(all="ignore")


def columns(x: Tensor) -> Array:
    """Return a contiguous array ``[I, N]`` with a copy of the values of a tensor ``[N, I]``."""
    return x.numpy(force=True).T.copy()


def array(tensor: Tensor) -> Array:
    """Return the values of a tensor as an array. The tensor may be a negated or conjugated view.

    The array may share the memory of the tensor, except in programs of several processes. There, FSDP frees the memory
    of a parameter between the forward and the backward pass, while the graph keeps the array, and PyTorch refuses to
    free memory that it has shared with NumPy.
    """
    if process_group_exists():
        tensor = tensor.clone()
    return tensor.numpy(force=True)


def _as_arrays(operands: Operands) -> Any:
    v, weight, base_weight, g = operands
    return Operands(
        None if v is None else columns(v),
        None if weight is None else array(weight),
        None if base_weight is None else array(base_weight),
        None if g is None else columns(g),
    )


def _as_tensors(value: Any) -> Any:
    if isinstance(value, tuple):  # The result of G is a pair.
        splines, base = value
        return torch.from_numpy(splines), None if base is None else torch.from_numpy(base)
    return torch.from_numpy(value.T.copy())
