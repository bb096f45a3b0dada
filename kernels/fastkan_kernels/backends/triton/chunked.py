"""The chunked implementation of the contractions F, G and H.

A kernel writes the features of a chunk of rows to memory, and cuBLAS multiplies them by the other operand. The memory
for features is bounded for any number of rows, and a chunk has enough rows for a matrix product that fills the GPU.
Sums over chunks are computed in float32, or in float64 if the matrix products are computed in float64.

A chunk takes one launch for its features, two products, and at most two sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import hardware
from .config import Config, chunk_rows
from .kernels.features import launch_dot, launch_write
from .key import key
from .problem import Problem
from .rules import chunking


def out(p: Problem, config: Config) -> Tensor:
    """Return the contraction F ``[N, O]``."""
    assert p.weight is not None
    y = p.x.new_empty(p.rows, p.outputs)
    for rows in chunks(p):
        psi, base = _features(p, config, rows)
        assert psi is not None
        total = _scaled(p, product(p, psi, p.weight.flatten(0, 1)))
        if base is None:
            y[rows] = total
        else:
            assert p.base_weight is not None
            _add(p, total, base, p.base_weight, y[rows])
    return y


def weight(p: Problem, config: Config) -> tuple[Tensor | None, Tensor | None]:
    """Compute the contraction G in the working dtype.

    Returns:
        A tuple of the result for the splines ``[K, I, O]``, or None if ``p.form`` is "none", and the result for the
        base function ``[I, O]``, or None if there is no base function.
    """
    assert p.g is not None
    totals: list[Tensor | None] = [None, None]
    for rows in chunks(p):
        for place, features in enumerate(_features(p, config, rows)):
            total = totals[place]
            if features is None:
                continue
            if total is None:
                totals[place] = product(p, features.t(), p.g[rows])
            else:
                _add(p, total, features.t(), p.g[rows], total)
    dw, base_dw = totals
    return None if dw is None else _scaled(p, dw).view(p.spline_count, p.inputs, p.outputs), base_dw


def into(p: Problem, config: Config) -> Tensor:
    """Return the contraction H ``[N, I]``."""
    assert p.weight is not None
    assert p.g is not None
    h = p.x.new_empty(p.x.shape)
    weight, base_weight = p.weight.flatten(0, 1).t(), p.base_weight
    for rows in chunks(p):
        products = product(p, p.g[rows], weight)
        base_products = None if base_weight is None else product(p, p.g[rows], base_weight.t())
        launch_dot(p, config, rows, products, base_products, h).run()
    return h


def features(p: Problem, psi: Tensor) -> Tensor:
    """Compute the values of the splines, write them into ``psi [N, K, I]`` and return them."""
    launch_write(p, chunking(key(p), p.capability), slice(0, p.rows), psi, None).run()
    return _scaled(p, psi)


def chunks(p: Problem) -> Iterator[slice]:
    """Yield the slice of rows of each chunk."""
    row_bytes = p.spline_count * p.inputs * (p.work if p.name == "H" else p.matmul_dtype).itemsize
    step = chunk_rows(row_bytes)
    for n in range(0, p.rows, step):
        yield slice(n, min(n + step, p.rows))


def _features(p: Problem, config: Config, rows: slice) -> tuple[Tensor | None, Tensor | None]:
    """Return a tuple of the splines ``[rows, K I]`` and the base function ``[rows, I]`` at some rows of x."""
    count = rows.stop - rows.start
    psi = base = None
    if p.form != "none":
        psi = p.x.new_empty(count, p.spline_count * p.inputs, dtype=p.matmul_dtype)
    if p.base != "none":
        base = p.x.new_empty(count, p.inputs, dtype=p.matmul_dtype)
    launch_write(p, config, rows, psi, base).run()
    return psi, base


def _scaled(p: Problem, values: Tensor) -> Tensor:
    """Multiply ``values`` in place by the d-th power of the first input's inverse knot spacing.

    The kernels compute d-th derivatives without the power of the inverse knot spacing. The inverse knot spacing is
    multiplied d times, because its d-th power alone might overflow.
    """
    if p.derivative > 0:
        first = p.knots[0]
        unit = (len(first) - 1) / (first[-1] - first[0])
        for _ in range(p.derivative):
            values.mul_(unit)
    return values


def product(p: Problem, a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product ``a @ b`` in the precision of a problem, summed and returned in its working dtype."""
    if a.dtype == p.work:
        with hardware.pytorch_products(p.precision):
            return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=p.work)
    return a.to(p.work) @ b.to(p.work)  # this line runs on a CPU only, for kernels in Triton's interpreter


def _add(p: Problem, total: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write ``total + a @ b`` into ``out``. If ``total`` and ``out`` differ, both may be overwritten."""
    if a.dtype != p.work:
        torch.add(total, product(p, a, b), out=out)
        return
    with hardware.pytorch_products(p.precision):
        total.addmm_(a, b)
    if out is not total:
        out.copy_(total)
