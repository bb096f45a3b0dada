"""Blocks of the dense features [rows, splines, I], each small enough to stay in a core's cache.

Four fillings, the same numbers from each to rounding:

- closed: on uniform knots and for d < k, the cardinal spline's truncated powers (:mod:`.cardinal`);
- scattered: the k + 1 that are not zero, put in their places (:mod:`.local`);
- recursive: Cox-de Boor over all of them (:mod:`.recurrence`), on any knots and for every d;
- compiled: the closed form again, as PyTorch's compiler makes it (:mod:`.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline import cardinal
from ...bspline.cox_de_boor import round_features, splines
from ...bspline.local import local_features
from ...bspline.recurrence import ROOMS, Recurrence
from ...knots import uniform_cells
from ..modes import has_values
from . import compiled
from .workspace import scratch

BLOCK_ELEMENTS = 1 << 19  # 2 MiB of float32, and as much again of scratch (or of psi, where it needs none)
MIN_ROWS = 256  # fewer rows make a slack matrix product
SCATTER_FROM = 32  # splines, from which on the scattered filling is the quickest


class Block(NamedTuple):
    """Some rows' features of some splines."""

    rows: slice
    splines: slice
    psi: Tensor  # [rows, splines, I]; times DenseFeatures.scale they are psi^(d)


def filling(basis: Basis, count: int, derivative: int, compiling: bool = False) -> str:
    """How blocks are filled: "closed", "scattered", "recursive" or "compiled".

    Args:
        compiling: whether features may be compiled.
    """
    closed = basis.uniform and derivative < basis.order
    if closed and compiling and basis.product is None and compiled.works():
        return "compiled"
    if derivative <= basis.order and count >= SCATTER_FROM:
        return "scattered"
    return "closed" if closed else "recursive"


def block_shape(rows: int, count: int, inputs: int, how: str) -> tuple[int, int]:
    """Rows and splines of a block filled the way ``how``; by sizes alone, so that the same shape gives
    the same bits."""
    if how in ("scattered", "recursive"):  # these make all splines of a row together
        elements = BLOCK_ELEMENTS if how == "recursive" else 2 * BLOCK_ELEMENTS
        return max(1, min(rows, elements // (count * inputs))), count
    elements = BLOCK_ELEMENTS if how == "closed" else 2 * BLOCK_ELEMENTS  # "compiled" needs no scratch
    block_rows = min(rows, max(MIN_ROWS, elements // (count * inputs)))
    return block_rows, min(count, max(1, elements // (block_rows * inputs)))


def all_features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """psi^(d) of all splines, ``[N, K, I]`` in the working dtype, for rows that fit into one block; valid until the
    next are made."""
    working = working_dtype(x.dtype)
    if x.numel() == 0 or derivative > basis.order:
        return x.new_zeros(len(x), basis.splines_of(knots), x.shape[1], dtype=working)
    dense = DenseFeatures(x.to(working), knots.to(working), basis, derivative)
    dense.shape = (len(x), dense.count)
    (block,) = dense.blocks()
    return block.psi if dense.scale == 1.0 else block.psi.mul_(dense.scale)


class DenseFeatures:
    """psi^(d) of all inputs, a block at a time.

    Args:
        x: ``[N, I]``, neither of them 0, in the working dtype, as are ``knots`` and ``v``.
        v: multiplier ``[N, I]``, or None.
        compiling: whether the closed form may be compiled.

    Attributes:
        scale: what the blocks must still be multiplied by; a product does it for nothing.
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
        self.basis, self.derivative, self.compiling = basis, derivative, compiling
        self.count = basis.splines_of(knots)
        self.filling = filling(basis, self.count, derivative, compiling)
        self.shape = block_shape(len(x), self.count, x.shape[1], self.filling)
        self.scale = 1.0
        if self.filling == "closed" and basis.product is None:
            self.scale = cardinal.scale(basis.order, derivative)
            if basis.cells is not None:
                self.scale *= basis.cells[1] ** derivative

    def blocks(self) -> Iterator[Block]:
        """All blocks, rows within splines; each reuses the memory of the one before."""
        fill = getattr(self, f"_{self.filling}")()
        for rows, numbers in self._plan():
            yield Block(rows, numbers, self._finished(fill(self.x[rows], numbers), rows))

    def dots(self, products: Callable[[slice, slice], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """``(products * psi).sum(1)`` of each block, ``[rows, I]``, for H.

        Args:
            products: of a block's rows and splines, ``[rows, splines, I]``.
        """
        if self.filling == "compiled":
            form = compiled.ClosedForm(self.x, self.knots, self.basis, self.derivative)
            for rows, numbers in self._plan():
                yield rows, form.dot(self.x[rows], self._middles(numbers), products(rows, numbers))
            return
        for block in self.blocks():
            yield block.rows, products(block.rows, block.splines).mul_(block.psi).sum(1)

    def _plan(self) -> Iterator[tuple[slice, slice]]:
        rows, count = self.shape
        for b in range(0, self.count, count):
            numbers = slice(b, min(b + count, self.count))
            for n in range(0, len(self.x), rows):
                yield slice(n, min(n + rows, len(self.x))), numbers

    def _finished(self, psi: Tensor, rows: slice) -> Tensor:
        psi = round_features(psi, self.knots, self.basis, self.derivative)
        if self.v is None:
            return psi
        v = self.v[rows]
        if self.filling == "recursive":  # laid out as psi is, so that the product runs along the rows
            v = v.t().contiguous().t()
        return psi.mul_(v.unsqueeze(1))

    def _middles(self, numbers: slice) -> Tensor:
        return cardinal.middles(numbers.start, numbers.stop - numbers.start, self.basis.order, self.x)

    def _rooms(self, tensors: int) -> Callable[[Tensor, slice], list[Tensor]]:
        """Memory for that many tensors like a block, to be used for one block after another."""
        inputs = self.x.shape[1]
        size = self.shape[0] * self.shape[1] * inputs
        memory = scratch(self.x, tensors * size, "features").view(tensors, size)

        def rooms(x: Tensor, numbers: slice) -> list[Tensor]:
            shape = (len(x), numbers.stop - numbers.start, inputs)
            return [m[: shape[0] * shape[1] * inputs].view(shape) for m in memory]

        return rooms

    def _compiled(self) -> Callable[[Tensor, slice], Tensor]:
        form = compiled.ClosedForm(self.x, self.knots, self.basis, self.derivative)
        rooms = self._rooms(1)

        def fill(x: Tensor, numbers: slice) -> Tensor:
            (psi,) = rooms(x, numbers)
            form.write(x, self._middles(numbers), psi)
            return psi

        return fill

    def _closed(self) -> Callable[[Tensor, slice], Tensor]:
        order, derivative = self.basis.order, self.derivative
        first, rate = uniform_cells(self.knots, self.basis)
        factor = rate**derivative * cardinal.scale(order, derivative) / self.scale
        rooms = self._rooms(1 + cardinal.scratch_needed(order, derivative))

        def fill(x: Tensor, numbers: slice) -> Tensor:
            z, *spare = rooms(x, numbers)
            t = torch.sub(x, first).mul_(rate)
            torch.sub(t.unsqueeze(1), self._middles(numbers).unsqueeze(1), out=z)
            psi = cardinal.spline_(z, order, derivative, spare)
            return psi if isinstance(factor, float) and factor == 1.0 else psi.mul_(factor)

        return fill

    def _scattered(self) -> Callable[[Tensor, slice], Tensor]:
        inputs = self.x.shape[1]
        beside = self.basis.order + 1  # numbers below 0 and above K-1 that name no spline
        width = beside + self.count + beside
        memory = scratch(self.x, self.shape[0] * width * inputs, "features")
        numbers = torch.arange(beside, device=self.x.device).add_(beside).unsqueeze(1)

        def fill(x: Tensor, _: slice) -> Tensor:
            first, values = local_features(x, self.knots, self.basis, self.derivative)
            padded = memory[: len(x) * width * inputs].view(len(x), width, inputs).zero_()
            padded.scatter_(1, first.unsqueeze(1) + numbers, values)
            return padded[:, beside : beside + self.count]

        return fill

    def _recursive(self) -> Callable[[Tensor, slice], Tensor]:
        order, derivative = self.basis.order, self.derivative
        readable = derivative <= order and has_values(self.knots)  # Recurrence reads the knots
        made = Recurrence(self.knots, order, derivative) if readable else None
        if made is None or not made.holds:
            return lambda x, _: splines(x, self.knots, order, derivative)
        inputs, count = self.knots.shape
        memory = scratch(self.x, ROOMS * count * inputs * self.shape[0], "features")

        def fill(x: Tensor, _: slice) -> Tensor:
            return made(x, memory[: ROOMS * count * inputs * len(x)].view(ROOMS, count, inputs, len(x)))

        return fill
