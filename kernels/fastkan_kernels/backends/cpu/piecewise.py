"""F_d, G_d and H_d of layers of few edges, from the polynomials of their edges.

On a cell of the knots every edge function is a polynomial. Its coefficients are a small product of the weights and a
table that depends on the knots alone (:mod:`...bspline.piecewise`), so the values of all edges at the rows,

    E_d[i,o,n] = sum_b psi_b^(d)(x[n,i]) W[b,i,o],

are sums of k + 1 - d terms each, whatever the number of splines. F_d is the sum of v E_d over i, and H_d the sum of
g E_d over o. G_d sums powers times v g over the rows of each cell, and multiplies the sums by the same table.

What contractions at the same rows share (the cells of the rows, powers, base functions, E_d of the last weights) is
cached with the rows: the backward of F_0 is G_0 and H_1 on the object that the forward has made, and a graph of higher
derivatives, which has some twenty contractions of one batch in a PINN's step, uses it for all of them. The arrays are
NumPy's, whose calls cost a third of PyTorch's and whose comparisons are quicker.
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
from . import selection

# multiplications in one product, of two matrices and with a vector, above which OpenBLAS uses several threads
MAX_OWN_PRODUCTS, MAX_OWN_VECTOR_PRODUCTS = 3 << 18, 1 << 13
BEYOND = 1e18  # outside of every grid; its product with 0 is 0, which an infinity's is not
MAX_KNOTS = 1 << 14  # whose tables are at most 36 times as many numbers
SHARING = 4  # how many times cheaper a contraction is in a graph of derivatives, by what it shares with others
MAX_POWERS = 2  # numbers of powers for each spline, above which G multiplies splines instead
BLOCK_VALUES = 1 << 19  # numbers in the largest arrays of a block, which stay in a core's cache
CACHED_VALUES = 1 << 22  # the same of all blocks whose arrays are cached
MIN_ROWS = 256  # of a block
MAX_SPLINES = 1 << 22  # numbers, 16 MiB of float32, of splines that are cached with rows
MANY_OUTPUTS = 0.6  # outputs for each spline, above which products with all splines are quicker than polynomials
SETTLING_BYTES = 31 << 20  # below the 32 MiB up to which glibc adapts
WHOLE = slice(None)
Array = Any  # numpy.ndarray, which is imported where it is used


class Location(NamedTuple):
    """Cells of the rows, and where in them the rows lie."""

    inside: Array  # [I, C, N], 1 in the cell of a row
    rate: Array  # [I, N], 1 over the width of that cell
    powers: Array  # [k + 1, I, N], of the distance from its middle, -1/2 to 1/2
    within: Array  # [I, N], x, clipped to +-BEYOND
    finite: bool


class EdgeValues:
    """Values of the edges that have certain weights, and of their derivatives, at the rows of a block."""

    def __init__(self, weight: Array, base_weight: Array | None) -> None:
        self.given_weight, self.given_base = weight, base_weight
        self.weight, self.base_weight = weight.copy(), None if base_weight is None else base_weight.copy()
        self.coefficients: Array | None = None  # [I, O, k + 1, N]
        self.values: dict[int, Array] = {}  # E_d for each d, [I, O, N]

    def are_of(self, weight: Array, base_weight: Array | None) -> bool:
        """Whether these weights have the same values."""
        if (self.base_weight is None) != (base_weight is None) or self.weight.shape != weight.shape:
            return False
        return (self.weight == weight).all() and (base_weight is None or (self.base_weight == base_weight).all())


class Block:
    """Rows ``x [I, N]`` that are worked on at once, with what contractions at them share.

    Arrays in its caches are never written into, so that several threads may go back through one graph.

    Args:
        by_splines: whether F_0 and G_0 are products with the splines at the rows, which is quicker once these exist.
    """

    def __init__(self, x: Array, tables: Pieces, basis: Basis, by_splines: bool = False) -> None:
        self.x, self.tables, self.basis, self.by_splines = x, tables, basis, by_splines
        self._location: Location | None = None
        self._last_edges: EdgeValues | None = None
        self._terms: dict[int, Array] = {}  # what multiplies the coefficients of u^d and above, [k + 1 - d, I, N]
        self._bases: dict[int, Array | None] = {}  # psi^(d) of the base function, [I, N]
        self._logistic: Array | None = None
        self._splines: dict[int, Array] = {}  # psi^(d), [I, K, N]
        self._joined_features: Array | None = None

    def contract(self, name: str, operands: Operands, derivative: int) -> Any:
        """F_d ``[O, N]``, G_d in two parts ``[K, I, O]`` and ``[I, O]``, or H_d ``[I, N]``.

        Args:
            operands: arrays, v ``[I, N]`` and g ``[O, N]``, or ``[I, O, N]`` where it differs by input.
        """
        import numpy as np

        v, weight, base_weight, g = operands
        if g is not None and g.ndim == 2:
            g = g[None]
        if name == "G":
            return self._contract_weight(g if v is None else v[:, None] * g, derivative)
        if name == "H" and derivative == 0 and base_weight is not None:
            location, base = self._location or self._locate(), self._base(0)
            if not location.finite and base is not None:  # of the edges at an infinity some would be inf, some -inf
                h = np.einsum("ion,ion->in", self.edges(weight, None, 0), g)
                return h + base * (base_weight[:, None] @ g)[:, 0]
        if name == "F" and v is None and derivative <= self.basis.order:  # without the values of each edge
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
        """E_d, ``[I, O, N]``; must not be written into."""
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
        """The cache for these weights; the last ones are recognised as the same arrays or by their values, since the
        table of contractions has other weights in the place of W at times."""
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
        """G_d from v g, ``[I or 1, O, N]``."""
        import numpy as np

        inputs, rows = self.x.shape
        outputs, order, count = upstream.shape[1], self.basis.order, self.tables.count
        # the splines at the rows pay in graphs of derivatives, where several contractions use them
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
            splines = self.tables.splines(sums.reshape(inputs, outputs, -1))  # of [I, O, (k + 1 - d) C]
        base = self._base(derivative)
        return splines, None if base is None else product(upstream, base[:, :, None]).reshape(inputs, outputs)

    def _locate(self) -> Location:
        self._coefficients(None)
        assert self._location is not None
        return self._location

    def _coefficients(self, polynomials: Array | None) -> Array:
        """Coefficients of polynomials ``[I or 1, R (k + 1), C]`` on the cells of the rows, ``[I, R, k + 1, N]``.

        A product with indicators of the rows' cells picks them. The first one locates the rows as well.
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
        rate = picked[:, 1] if finite else np.where(np.isnan(x), x, picked[:, 1])  # a slope at NaN is NaN
        powers = np.empty((order + 1, inputs, rows), x.dtype)
        powers[0] = 1
        u = np.subtract(within, picked[:, 0], out=powers[1])
        u *= rate
        for power in range(2, order + 1):
            np.multiply(powers[power - 1], u, out=powers[power])
        self._location = Location(inside, rate, powers, within, finite)
        return picked[:, 2:].reshape(inputs, -1, order + 1, rows)

    def _sum(self, coefficients: Array, derivative: int) -> Array:
        """The derivatives by x of polynomials with these coefficients, ``[I, R, N]``."""
        import numpy as np

        return np.einsum("irpn,pin->irn", coefficients[:, :, derivative:], self._terms_of(derivative))

    def _terms_of(self, derivative: int) -> Array:
        if derivative == 0:
            return (self._location or self._locate()).powers
        if derivative not in self._terms:
            _, rate, powers, _, _ = self._location or self._locate()
            terms = powers[: len(powers) - derivative] * _falling(len(powers) - 1, derivative, powers.dtype.char)
            for _ in range(derivative):
                terms *= rate  # which costs a tenth of NumPy's power
            self._terms[derivative] = terms
        return self._terms[derivative]

    def _spline_values(self, derivative: int) -> Array:
        """psi^(d) of all splines, ``[I, K, N]``."""
        import numpy as np

        if derivative in self._splines:
            return self._splines[derivative]
        tables, (inputs, active, _, cells) = self.tables, self.tables.local.shape
        if cells <= MAX_DENSE_CELLS:
            found = self._sum(self._coefficients(tables.table.reshape(inputs, -1, cells)), derivative)
        else:  # the active splines' values are put in their places among all
            local = self._sum(self._coefficients(tables.local.reshape(inputs, -1, cells)), derivative)
            inside, *_, finite = self._location or self._locate()
            cell = (inside * np.arange(cells)[:, None]).sum(1).astype(np.int64)  # 0 outside of the grid
            found = np.zeros((len(self.x), tables.count + 2 * tables.order, self.x.shape[1]), self.x.dtype)
            np.put_along_axis(found, cell[:, None] + np.arange(active)[:, None], local, 1)
            found = found[:, tables.order : tables.order + tables.count]
            if not finite:
                found = np.where(np.isnan(self.x)[:, None], np.nan, found)
        self._splines[derivative] = found
        return found

    def _features(self) -> Array:
        """All splines and, last, the base function if there is one, ``[I, P, N]``."""
        import numpy as np

        if self._joined_features is None:
            psi, base = self._spline_values(0), self._base(0)
            self._joined_features = psi if base is None else np.concatenate([psi, base[:, None]], 1)
        return self._joined_features

    def _base(self, derivative: int) -> Array | None:
        """psi^(d) of the base function, ``[I, N]``; None without one."""
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
        if name == "identity":
            if derivative == 0:
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
        """A spline's derivative above its order: 0, and NaN at NaN."""
        import numpy as np

        return np.where(np.isnan(self.x), self.x, self.x.dtype.type(0))


class Piecewise:
    """F_d, G_d and H_d at rows ``x [I, N]``, in blocks that stay in a core's cache.

    Arrays of the first blocks are cached, up to :data:`CACHED_VALUES` numbers; other blocks are made again for each
    use. That costs up to half a step more, and bounds the memory whatever the number of rows.

    Args:
        x: contiguous; it must not be written into afterwards.
        outputs: O of the layer.
        by_splines: as in :class:`Block`; then there is one block, so that all splines are cached.
    """

    def __init__(self, x: Array, tables: Pieces, basis: Basis, outputs: int, by_splines: bool = False) -> None:
        self.x, self.tables, self.basis, self.by_splines = x, tables, basis, by_splines
        _settle_allocator()
        rows = x.shape[1]
        count, cached = block_counts(rows, len(x), outputs, tables.local.shape[3], basis.order)
        if by_splines:  # which are to be cached
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
        """The rows of each block, and the block; one that is not cached is for one use."""
        if not self._again:
            return self._cached
        return chain(self._cached, ((part, self._block(part)) for part in self._again))

    def input_moments(self) -> Moments:
        """Moments of each input over the rows."""
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
        """Gradients of a contraction, as :func:`.trilinear.gradients`.

        Args:
            add: what becomes of the upstream gradient in each block.
        """
        found: list[dict[str, Any]] = []
        for part, block in self.blocks():
            own = full if part is WHOLE else _rows(full, part)
            if add is not None:
                own = own._replace(g=add(block, own.g))
            found.append(gradients(name, own, wanted, derivative, block.contract))
        return found[0] if len(found) == 1 else {by: _joined(by, [each[by] for each in found]) for by in wanted}


def block_counts(rows: int, inputs: int, outputs: int, cells: int, order: int) -> tuple[int, int]:
    """The number of blocks and how many of them are cached, from sizes alone, so that the same shape gives the same
    bits."""
    terms = outputs * (order + 1)
    values = rows * inputs * (cells + 2 * terms)
    count = 1 if values <= CACHED_VALUES else -(-values // BLOCK_VALUES)
    if cells <= MAX_DENSE_CELLS:  # so that the products stay NumPy's own, which are quicker
        count = max(count, min(rows // MIN_ROWS, -(-rows * cells * (terms + 2) // MAX_OWN_PRODUCTS)))
    return count, count if values <= CACHED_VALUES else max(1, count * CACHED_VALUES // values)


def splines_pay(values: int, outputs: int, tables: Pieces) -> bool:
    """Whether a step without slopes is quicker by products with the splines at its input values than by polynomials."""
    dense = outputs > MANY_OUTPUTS * tables.count and tables.local.shape[3] <= MAX_DENSE_CELLS
    return dense and values * (tables.count + 1) <= MAX_SPLINES


def _joined_weights(weight: Array, base_weight: Array | None) -> Array:
    """The weights of all features, ``[P, I, O]``."""
    import numpy as np

    return weight if base_weight is None else np.concatenate([weight, base_weight[None]])


def _rows(operands: Operands, part: slice) -> Operands:
    """The operands of some rows."""
    v, weight, base_weight, g = operands
    return Operands(None if v is None else v[:, part], weight, base_weight, None if g is None else g[..., part])


def _joined(what: str, parts: list[Any]) -> Any:
    """An operand, or a gradient with respect to x, from its parts in each block."""
    import numpy as np

    if what != "W":
        return np.concatenate(parts, -1)
    splines, bases = zip(*parts)
    return sum(splines[1:], splines[0]), None if bases[0] is None else sum(bases[1:], bases[0])


class Moments:
    """Mean and sum of squares of columns that come in blocks of rows, joined by the formula of Chan, Golub and LeVeque
    (Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).

    Values are taken less those of the first row, so that columns which do not vary leave exactly 0.
    """

    rows = 0
    only: Array | None = None  # the centred values where there is one block

    def add(self, values: Array) -> None:
        """Add a block ``[..., N]``."""
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
        """Standard deviation of each column, once all blocks are added."""
        import numpy as np

        return np.sqrt(self.squares / (self.rows - 1)).astype(self.first.dtype, copy=False)

    def share(self, by_std: Array) -> Array:
        """What multiplies the centred values in their gradient; 0 where a column does not vary."""
        import numpy as np

        by_std, std = by_std / (self.rows - 1), self.std
        return by_std / std if std.all() else np.divide(by_std, std, out=np.zeros_like(by_std), where=std != 0)

    def centred(self, values: Array) -> Array:
        """The values of a block less the mean."""
        apart = values - self.first
        apart -= self.mean.astype(apart.dtype, copy=False)
        return apart


@cache
def _settle_allocator() -> None:
    """Let the memory of one pass stay with the process for the next, up to 62 MiB.

    glibc returns the top of its heap to the system beyond twice the size of the largest block that was freed. With
    arrays of some 100 KiB each, every step would return all of them and pay a page fault for each 4 KiB again, up to
    half of its time. Freeing one large block, which is never touched, moves that limit. Other allocators ignore it.
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
    """The factors that differentiation puts before the powers d to k, ``[k + 1 - d, 1, 1]``."""
    import numpy as np

    powers = range(derivative, order + 1)
    return np.array([math.perm(power, derivative) for power in powers], dtype)[:, None, None]


# -- on tensors ---------------------------------------------------------------------------------------


class PiecewiseTensors:
    """The contractions of :class:`Piecewise` on tensors: v ``[N, I]`` and g ``[N, O]``."""

    def __init__(self, rows: Piecewise) -> None:
        self.rows = rows

    def contract(self, name: str, operands: Operands, derivative: int) -> Any:
        """F_d ``[N, O]``, G_d in two parts, or H_d ``[N, I]``."""
        given, found = _as_arrays(operands), []
        with quiet():
            for part, block in self.rows.blocks():
                own = given if part is WHOLE else _rows(given, part)
                found.append(block.contract(name, own, derivative))
        return _as_tensors(found[0] if len(found) == 1 else _joined(CONTRACTIONS[name].free, found))

    def vjp(self, name: str, full: Operands, wanted: Collection[str], derivative: int) -> dict[str, Any]:
        """:func:`.trilinear.gradients` of a contraction, without a graph."""
        with quiet():
            found = self.rows.vjp(name, _as_arrays(full), wanted, derivative)
        return {by: _as_tensors(value) for by, value in found.items()}


def rows_of(
    cached: dict, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, *derivatives: int
) -> PiecewiseTensors | None:
    """Return the object for contractions at the rows x, or None where another way is quicker or the only one.

    Args:
        cached: dictionary in which the object is cached for further contractions of the same x, knots and basis. If
            it has ``"pieces"``, that is called for the tables of the knots. ``"fixed_x"`` is true where gradients will
            be wanted, but none with respect to x.
        operands: everything that will be contracted, of plain tensors.
        derivatives: the order d of each contraction, the lowest first.
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
    """Whether there is anything to compute, in a dtype that NumPy has, with tables of a moderate size."""
    if inputs * knots > MAX_KNOTS:
        return False
    return rows * inputs * outputs > 0 and basis.matmul_dtype is None and dtype in (torch.float32, torch.float64)


def _pays(rows: int, inputs: int, knots: int, outputs: int, basis: Basis, derivative: int) -> bool:
    count, cached = block_counts(rows, inputs, outputs, knots - 1, basis.order)
    contractions = SHARING if derivative > 0 and cached == count else 1
    layer = rows, inputs, outputs, knots - basis.order - 1, basis
    return selection.piecewise_pays([layer], contractions=contractions)


def quiet() -> Any:
    """NumPy without warnings about results that are not finite."""
    import numpy as np

    return np.errstate(all="ignore")


def columns(x: Tensor) -> Array:
    """``[N, I]`` as a contiguous ``[I, N]`` of its own."""
    return array(x).T.copy()


def array(tensor: Tensor) -> Array:
    """The tensor's values as an array, of a negated or conjugated view too."""
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
    if isinstance(value, tuple):  # both parts of G
        splines, base = value
        return torch.from_numpy(splines), None if base is None else torch.from_numpy(base)
    return torch.from_numpy(value.T.copy())
