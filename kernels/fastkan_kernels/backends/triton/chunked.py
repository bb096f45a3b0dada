"""The chunked implementation of the contractions F, G and H.

A kernel writes the features of a chunk of rows to memory, and cuBLAS multiplies them by the other operand. A chunk is
small enough to stay in the L2 cache, so the memory for features is bounded for any number of rows. Sums over chunks are
computed in float32, or in float64 if the matrix products are computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import hardware
from .config import Config
from .kernels.features import launch_dot, launch_write
from .key import key
from .problem import Problem
from .rules import chunking

# Maximum size of a chunk, unless MIN_ROWS rows are larger. An L2 cache has 40 to 60 MiB, which W and the result share.
CHUNK_BYTES = 16 << 20
MIN_ROWS = 128  # minimum number of rows in a chunk; a matrix product of fewer rows is slow


def out(p: Problem, config: Config, y: Tensor) -> None:
    """Compute the contraction F and write it into ``y [N, O]``."""
    assert p.weight is not None
    weight, unit = p.weight.flatten(0, 1), _unit(p)
    for rows in chunks(p):
        total = product(p, _features(p, config, rows, base=False), weight)
        if unit is not None:
            total = _scaled(total, unit, p.derivative)
        if p.base_weight is not None:
            total += product(p, _features(p, config, rows, base=True), p.base_weight)
        y[rows] = total


def weight(p: Problem, config: Config, dw: Tensor, base: bool) -> None:
    """Compute the contraction G and write it into ``dw``, a tensor of the working dtype.

    ``dw`` has the shape ``[K, I, O]`` for the splines or, if ``base``, the shape ``[1, I, O]`` for the base function.
    """
    assert p.g is not None
    unit = None if base else _unit(p)
    dw.zero_()
    for rows in chunks(p):
        psi = _features(p, config, rows, base)
        dw.view(psi.shape[1], -1).add_(product(p, psi.t(), p.g[rows]))
    if unit is not None:
        dw.copy_(_scaled(dw, unit, p.derivative))


def into(p: Problem, config: Config, h: Tensor) -> None:
    """Compute the contraction H and write it into ``h [N, I]``, a tensor of the working dtype."""
    assert p.weight is not None
    assert p.g is not None
    weight = p.weight.flatten(0, 1).t()
    h.zero_()
    for rows in chunks(p):
        launch_dot(p, config, rows, product(p, p.g[rows], weight), h, base=False).run()
        if p.base_weight is not None:
            launch_dot(p, config, rows, product(p, p.g[rows], p.base_weight.t()), h, base=True).run()


def features(p: Problem, psi: Tensor) -> Tensor:
    """Compute the values of the splines, write them into ``psi [N, K, I]`` and return them."""
    launch_write(p, chunking(key(p), p.capability), slice(0, p.rows), psi, base=False).run()
    unit = _unit(p)
    return psi if unit is None else _scaled(psi, unit, p.derivative)


def chunks(p: Problem) -> Iterator[slice]:
    """Yield the slice of rows of each chunk."""
    row_bytes = p.spline_count * p.inputs * (p.work if p.name == "H" else p.matmul_dtype).itemsize
    step = max(MIN_ROWS, CHUNK_BYTES // max(1, row_bytes))
    for n in range(0, p.rows, step):
        yield slice(n, min(n + step, p.rows))


def _features(p: Problem, config: Config, rows: slice, base: bool) -> Tensor:
    """Return ``[rows, K I]``: the values of the splines at some rows of x.

    If ``base``, return the values of the base function ``[rows, I]`` instead.
    """
    psi = p.x.new_empty(rows.stop - rows.start, 1 if base else p.spline_count, p.inputs, dtype=p.matmul_dtype)
    launch_write(p, config, rows, psi, base).run()
    return psi.flatten(1)


def _unit(p: Problem) -> Tensor | None:
    """Return the inverse knot spacing of the first input, or None for d = 0.

    The kernel divides d-th derivatives by the d-th power of the inverse knot spacing.
    """
    if p.derivative == 0:
        return None
    first = p.knots[0]
    return (len(first) - 1) / (first[-1] - first[0])


def _scaled(values: Tensor, unit: Tensor, times: int) -> Tensor:
    """Return ``values * unit^times``.

    ``values`` are multiplied repeatedly by ``unit``, because the power ``unit^times`` alone might overflow.
    """
    for _ in range(times):
        values = values * unit
    return values


def product(p: Problem, a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product ``a @ b`` in the precision of a problem, summed and returned in its working dtype."""
    if a.dtype == p.work:
        with hardware.pytorch_products(p.precision):
            return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=p.work)
    return a.to(p.work) @ b.to(p.work)  # this line runs on a CPU only, for kernels in Triton's interpreter
