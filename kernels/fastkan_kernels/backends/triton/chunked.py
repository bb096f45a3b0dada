"""F, G and H in the chunked way: the features of a chunk of rows are written to memory and multiplied by cuBLAS.

A chunk is small enough to stay in the L2 cache, so memory is bounded for any number of rows. Sums over chunks are
float32 for every dtype of the products (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .kernels.features import launch_dot, launch_write
from .problem import Problem
from .tuning.config import Config
from .tuning.key import key
from .tuning.rules import chunking

CHUNK_BYTES = 16 << 20  # an L2 cache has 40 to 60 MiB, of which W and the result need some
MIN_ROWS = 128  # of a chunk; the matrix product of fewer rows is slow


def out(p: Problem, config: Config, y: Tensor) -> None:
    """Write F into ``y [N, O]``."""
    assert p.weight is not None
    weight, unit = p.weight.flatten(0, 1), _unit(p)
    for rows in chunks(p):
        total = product(_features(p, config, rows, base=False), weight, p.work)
        if unit is not None:
            total = _scaled(total, unit, p.derivative)
        if p.base_weight is not None:
            total += product(_features(p, config, rows, base=True), p.base_weight, p.work)
        y[rows] = total


def weight(p: Problem, config: Config, dw: Tensor, base: bool) -> None:
    """Write G of the splines, or of the base function, into ``dw [K or 1, I, O]`` of the working dtype."""
    assert p.g is not None
    unit = None if base else _unit(p)
    dw.zero_()
    for rows in chunks(p):
        psi = _features(p, config, rows, base)
        dw.view(psi.shape[1], -1).add_(product(psi.t(), p.g[rows], p.work))
    if unit is not None:
        dw.copy_(_scaled(dw, unit, p.derivative))


def into(p: Problem, config: Config, h: Tensor) -> None:
    """Write H into ``h [N, I]`` of the working dtype."""
    assert p.weight is not None
    assert p.g is not None
    weight = p.weight.flatten(0, 1).t()
    h.zero_()
    for rows in chunks(p):
        launch_dot(p, config, rows, product(p.g[rows], weight, p.work), h, base=False).run()
        if p.base_weight is not None:
            launch_dot(p, config, rows, product(p.g[rows], p.base_weight.t(), p.work), h, base=True).run()


def features(p: Problem, psi: Tensor) -> Tensor:
    """Write the splines into ``psi [N, K, I]``, and return them."""
    launch_write(p, chunking(key(p), p.capability), slice(0, p.rows), psi, base=False).run()
    unit = _unit(p)
    return psi if unit is None else _scaled(psi, unit, p.derivative)


def chunks(p: Problem) -> Iterator[slice]:
    """The slices of rows that are computed one after another."""
    row_bytes = p.spline_count * p.inputs * (p.work if p.name == "H" else p.matmul_dtype).itemsize
    step = max(MIN_ROWS, CHUNK_BYTES // max(1, row_bytes))
    for n in range(0, p.rows, step):
        yield slice(n, min(n + step, p.rows))


def _features(p: Problem, config: Config, rows: slice, base: bool) -> Tensor:
    """The splines ``[rows, K I]``, or the base function ``[rows, I]``, of some rows."""
    psi = p.x.new_empty(rows.stop - rows.start, 1 if base else p.spline_count, p.inputs, dtype=p.matmul_dtype)
    launch_write(p, config, rows, psi, base).run()
    return psi.flatten(1)


def _unit(p: Problem) -> Tensor | None:
    """Inverse spacing of the first input, by whose d-th power the kernel divides derivatives; None for d = 0."""
    if p.derivative == 0:
        return None
    first = p.knots[0]
    return (len(first) - 1) / (first[-1] - first[0])


def _scaled(values: Tensor, unit: Tensor, times: int) -> Tensor:
    """``values * unit^times``, by repeated multiplication, since the power alone might overflow."""
    for _ in range(times):
        values = values * unit
    return values


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in ``dtype``, the working dtype, in which it is also summed."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a.to(dtype) @ b.to(dtype)).to(dtype)  # for kernels in Triton's interpreter
