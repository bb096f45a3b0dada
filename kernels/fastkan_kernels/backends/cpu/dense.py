"""Evaluation of all features in blocks [rows, splines, I].

Evaluation in blocks bounds the memory. On a CPU, each block is small enough to stay in a core's cache, which can save
up to a tenth of the time. A block is filled by one of four algorithms. The results of the four algorithms differ only
by rounding errors.

- "closed" evaluates the truncated powers of the cardinal spline (:mod:`.cardinal`), on uniform knots and for d < k.
- "compiled" evaluates the closed form by code that PyTorch's compiler has generated (:mod:`.compiled`).
- "scattered" evaluates only the k + 1 active splines and scatters their values into zeros (:mod:`.local`).
- "recursive" runs the Cox-de Boor recursion over all splines (:mod:`.recurrence`), on any knots and for every d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ...basis import Basis, working_dtype
from ...bspline import cardinal
from ...bspline.cox_de_boor import base_function, round_features, splines
from ...bspline.local import local_features
from ...bspline.recurrence import SCRATCH, Recurrence
from ...knots import uniform_grid
from ..modes import has_values
from . import compiled

# Number of elements in a block of splines. A block of splines takes 2 MiB in float32 and may need another 2 MiB of
# scratch memory. Blocks that need no scratch memory may have twice as many elements.
BLOCK_ELEMENTS = 1 << 19

BASE_ELEMENTS = 1 << 18  # the number of elements in a block of base function values

# Number of elements in a block, of splines or of base function values, on other devices than a CPU. A block takes
# 64 MiB in float32, which occupies a GPU, and needs up to three times as much scratch memory.
GPU_ELEMENTS = 1 << 24

MIN_ROWS = 256  # the minimum number of rows in a block; matrix products with fewer rows are slow

SCATTER_FROM = 32  # the smallest number of splines for which the scattered algorithm is the fastest


def filling(basis: Basis, count: int, derivative: int, compiling: bool = False, on_cpu: bool = True) -> str:
    """Return the algorithm that fills blocks: "closed", "compiled", "scattered" or "recursive".

    Args:
        count: the number of splines K.
        compiling: whether features may be computed by compiled code.
        on_cpu: whether the features are computed on a CPU. On a GPU, the recursion would have to wait for the knots.
    """
    closed = basis.uniform and derivative < basis.order
    if closed and compiling and basis.matmul_dtype is None and compiled.works():
        return "compiled"
    if derivative <= basis.order and (count >= SCATTER_FROM or not (closed or on_cpu)):
        return "scattered"
    return "closed" if closed else "recursive"


def block_shape(rows: int, count: int, inputs: int, how: str, on_cpu: bool = True) -> tuple[int, int]:
    """Return a tuple of the number of rows and the number of splines in a block that the algorithm ``how`` fills.

    The size of a block depends only on the sizes of the layer and its input. Sums over inputs of equal shape are
    therefore always computed in the same order, and results are reproducible to the last bit.
    """
    if not on_cpu:
        return max(1, min(rows, GPU_ELEMENTS // (count * inputs))), count
    if how in ("scattered", "recursive"):  # scattering and the recursion evaluate all splines of a row together
        elements = BLOCK_ELEMENTS if how == "recursive" else 2 * BLOCK_ELEMENTS
        return max(1, min(rows, elements // (count * inputs))), count
    elements = BLOCK_ELEMENTS if how == "closed" else 2 * BLOCK_ELEMENTS  # compiled code needs no scratch memory
    block_rows = min(rows, max(MIN_ROWS, elements // (count * inputs)))
    return block_rows, min(count, max(1, elements // (block_rows * inputs)))


def all_features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Evaluate psi^(d) of all splines in a single block, and return a tensor ``[N, K, I]`` in the working dtype."""
    working = working_dtype(x.dtype)
    if x.numel() == 0 or derivative > basis.order:
        return x.new_zeros(len(x), basis.splines_of(knots), x.shape[1], dtype=working)
    features = DenseFeatures(x.to(working), knots.to(working), basis, derivative)
    features.shape = (len(x), features.count)
    ((_, _, psi),) = features.blocks()
    return psi if features.scale == 1.0 else psi.mul_(features.scale)


def base_blocks(x: Tensor, basis: Basis, derivative: int, v: Tensor | None = None) -> Iterable[tuple[slice, Tensor]]:
    """Yield the slice of each block of rows and the derivative of the base function ``[rows, I]`` in the block.

    The derivative is multiplied by v if v is given.
    """
    step = max(1, (BASE_ELEMENTS if x.is_cpu else GPU_ELEMENTS) // x.shape[1])
    rows = list(map(slice, range(0, len(x), step), range(step, len(x) + step, step)))
    base = map(partial(base_values, basis=basis, derivative=derivative), map(x.__getitem__, rows))
    return zip(rows, base if v is None else map(torch.mul, base, map(v.__getitem__, rows)))


def base_values(x: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Evaluate the derivative of the base function at each element of x, which has the working dtype."""
    finite = torch.finfo(x.dtype)  # x is clamped because PyTorch's silu or its derivative would be NaN at infinity
    if basis.base == "silu" and derivative == 0:
        base = functional.silu(x.clamp(min=finite.min))
    elif basis.base == "silu" and derivative == 1:  # using silu_backward makes a backward pass a tenth faster
        within = x.clamp(finite.min, finite.max)
        base = torch.ops.aten.silu_backward(torch.ones_like(within), within)
    else:
        base = base_function(x, basis.base, derivative)
    if basis.matmul_dtype is not None:
        base = base.to(basis.matmul_dtype).to(x.dtype)
    return base


class DenseFeatures:
    """The splines psi^(d) of all inputs, which are evaluated one block at a time.

    Args:
        x: a non-empty input ``[N, I]`` in the working dtype.
        knots: the knots ``[I, G + 2k + 1]`` in the working dtype.
        v: a factor ``[N, I]`` in the working dtype that the splines are multiplied by, or None.
        compiling: whether the closed form may be evaluated by compiled code.

    Attributes:
        filling: the name of the algorithm that fills the blocks; see :func:`filling`.
        shape: a tuple of the number of rows and the number of splines in a block.
        scale: a number that the caller must multiply the blocks by. A matrix product can include the factor ``scale``
            at no extra cost.
    """

    def __init__(
        self,
        x: Tensor,
        knots: Tensor,
        basis: Basis,
        derivative: int,
        v: Tensor | None = None,
        compiling: bool = False,
    ):
        self.x, self.knots, self.v = x, knots, v
        self.basis, self.derivative = basis, derivative
        self.count = basis.splines_of(knots)
        self.filling = filling(basis, self.count, derivative, compiling, x.is_cpu)
        self.shape = block_shape(len(x), self.count, x.shape[1], self.filling, x.is_cpu)
        self.scale = 1.0
        if self.filling == "closed" and basis.matmul_dtype is None and basis.uniform_grid is not None:
            self.scale = cardinal.scale(basis.order, derivative) * basis.uniform_grid[1] ** derivative

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the row slice, the spline slice and psi ``[rows, splines, I]`` of every block.

        The outer loop runs over the spline slices, and the inner loop runs over the row slices. A block is computed
        when the iterator reaches it, and may overwrite the memory of the previous block.
        """
        height, width = self.shape
        splines = [slice(b, min(b + width, self.count)) for b in range(0, self.count, width)]
        rows = [slice(n, n + height) for n in range(0, len(self.x), height)] * len(splines)
        splines = [each for each in splines for _ in range(len(rows) // len(splines))]
        psi = map(getattr(self, f"_{self.filling}")(), map(self.x.__getitem__, rows), splines)
        if self.v is not None or self.basis.matmul_dtype is not None:
            psi = map(self._finished, psi, rows)
        return zip(rows, splines, psi)

    def _finished(self, psi: Tensor, rows: slice) -> Tensor:
        psi = round_features(psi, self.knots, self.basis, self.derivative)
        if self.v is None:
            return psi
        v = self.v[rows]
        if self.filling == "recursive":  # v gets the same memory layout as psi, which makes their product faster
            v = v.t().contiguous().t()
        return psi.mul_(v.unsqueeze(1))

    def _memory(self, width: int) -> Tensor:
        """Allocate memory for ``width`` numbers for each row and input of a block."""
        return self.x.new_empty(self.shape[0] * self.x.shape[1] * width)

    def _closed(self) -> Callable[[Tensor, slice], Tensor]:
        order, derivative = self.basis.order, self.derivative
        first, inv_spacing = uniform_grid(self.knots, self.basis)
        factor = inv_spacing**derivative * cardinal.scale(order, derivative) / self.scale
        memory = self._memory(self.shape[1] * (1 + cardinal.scratch_needed(order, derivative)))
        fill = partial(cardinal.splines_at, first, inv_spacing, order, derivative, memory)
        if isinstance(factor, float) and factor == 1.0:
            return fill
        return lambda x, numbers: fill(x, numbers).mul_(factor)

    def _compiled(self) -> Callable[[Tensor, slice], Tensor]:
        return compiled.closed_form(self.x, self.knots, self.basis, self.derivative)

    def _scattered(self) -> Callable[[Tensor, slice], Tensor]:
        inputs = self.x.shape[1]
        beside = self.basis.order + 1  # the number of extra entries for spline indices below 0 or above K - 1
        width = beside + self.count + beside
        memory = self._memory(width)
        numbers = torch.arange(beside, device=self.x.device).add_(beside).unsqueeze(1)

        def fill(x: Tensor, _: slice) -> Tensor:
            first, values = local_features(x, self.knots, self.basis, self.derivative)
            padded = memory[: len(x) * width * inputs].view(len(x), width, inputs).zero_()
            padded.scatter_(1, first.unsqueeze(1) + numbers, values)
            return padded[:, beside : beside + self.count]

        return fill

    def _recursive(self) -> Callable[[Tensor, slice], Tensor]:
        order, derivative = self.basis.order, self.derivative
        # ``Recurrence`` reads the values of the knots, for which the program would have to wait on a GPU.
        readable = derivative <= order and self.x.is_cpu and has_values(self.knots)
        recurrence = Recurrence(self.knots, order, derivative) if readable else None
        if recurrence is None or not recurrence.holds:
            return lambda x, _: splines(x, self.knots, order, derivative)
        inputs, count = self.knots.shape
        memory = self._memory(SCRATCH * count)

        def fill(x: Tensor, _: slice) -> Tensor:
            return recurrence(x, memory[: SCRATCH * count * inputs * len(x)].view(SCRATCH, count, inputs, len(x)))

        return fill
