"""Computation of the contractions F, G and H by hand-written kernels.

:mod:`.selection` chooses the implementation of each contraction. The implementations are the following:

- fused: a kernel computes the features in registers and multiplies them at once, so that only the result is written to
  memory (:mod:`.kernels.contract_out`, :mod:`.kernels.contract_weight`, :mod:`.kernels.contract_in`).
- chunked: a kernel writes the features of some rows to memory, and a matrix product reads them (:mod:`.chunked`).
- pipelined: a fused kernel for F or G on Hopper GPUs has hand-written waits, so that the computation of features and
  the matrix products overlap (:mod:`.hopper`).
- gather: a kernel for F or H reads only the weights of the k + 1 active splines of each input, without tensor cores
  (:mod:`.kernels.gather`).
- banded: like gather, but the tensor cores multiply the weights, for two-byte dtypes and spline orders up to 3
  (:mod:`.banded`).

Derivatives of the splines above the spline order are 0. For these derivatives, only the base function contributes to
the contractions, and PyTorch's own functions compute its contribution to F and H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import base_function
from ...trilinear import Operands
from . import chunked, cost, hardware, selection
from .config import Config
from .kernels.contract_in import launch_in
from .kernels.contract_out import launch_out
from .kernels.contract_weight import launch_weight
from .kernels.gather import launch_gather_in, launch_gather_out
from .key import key
from .launch import Launch, Repeat, replacement
from .problem import Problem, converted, form_of, problem
from .selection import choose, choose_for


def contract(name: str, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int) -> Any:
    """Return a contraction. The launches of an earlier call are repeated if nothing on which they depend has changed.

    Args:
        name: the contraction, ``"F"``, ``"G"`` or ``"H"``.
        x: inputs ``[N, I]``.
        knots: knots ``[I, M]``.
        operands: operands of the contraction besides x.
        basis: spline order, base function and other properties of the features.
        derivative: order d of the derivative of the features.

    Returns:
        ``y [N, O]`` of F, ``h [N, I]`` of H, or for G a tuple of the tensor for the splines ``[K, I, O]`` and the
        tensor for the base function ``[I, O]``, which is None without a base function.
    """
    records, tensors = selection.records, (x, knots, *operands)
    tuning = selection.state()
    place = _place(name, tensors, basis, derivative, tuning.on)
    record = records.get(place)
    if record is not None and replacement() is None:
        return record.run(tensors)
    if 0 in x.shape or 0 in (operands.weight if operands.weight is not None else operands.g).shape:
        return _empty(name, x, knots, operands, basis)
    p = problem(name, x, knots, operands, basis, derivative)
    if p.form == "none" and name != "G":
        return (_base_out(p) if name == "F" else _base_in(p)).to(x.dtype)
    config, final = choose_for(p, run, tuning)
    if config.way in ("chunked", "banded"):
        return run(p, config)
    memory, launches = _launch(p, config)
    if final and p.form != "none" and replacement() is None:
        found = _record(p, tensors, memory, launches)
        if found is not None:
            if len(records) >= MAX_RECORDS:
                records.clear()
            records[place] = found
    return _result(p, memory)


def run(p: Problem, config: Config) -> Any:
    """Compute a contraction with a configuration, and return the result of :func:`contract`."""
    if config.way not in ("chunked", "banded"):
        return _result(p, _launch(p, config)[0])
    if config.way == "banded":
        from . import banded  # the kernels can be imported only where Gluon is available

        return (banded.out if p.name == "F" else banded.into)(p, config)
    if p.name != "G":
        return (chunked.out if p.name == "F" else chunked.into)(p, config)
    if (p.form, p.base) == ("none", "none"):
        return _weights(p, None, None)
    return _weights(p, *chunked.weight(p, config))


def _launch(p: Problem, config: Config) -> tuple[list[Tensor | None], list[tuple[Launch, Any]]]:
    """Launch the kernels of a contraction.

    Returns:
        A tuple of the memory into which the kernels write, and each launch with its compiled kernel.
    """
    memory, part_rows = memory_of(p, config)
    if memory == [None, None]:  # all features are 0, so no kernel is launched for G
        return memory, []
    launch = launched(p, config, memory, part_rows)
    return memory, [(launch, launch.run())]


def memory_of(p: Problem, config: Config) -> tuple[list[Tensor | None], tuple[int, int]]:
    """Return uninitialised memory for the results of a kernel, and the numbers of rows in a part of G.

    The contraction G has results for the splines and for the base function, and a result for each part of the rows.

    Returns:
        A tuple of the memory, as for :func:`launched`, and the numbers of rows in a part of G for the splines and for
        the base function.
    """
    if p.name != "G":
        return [p.x.new_empty(p.rows, p.outputs if p.name == "F" else p.inputs)], (p.rows, p.rows)
    gpu = cost.gpu_of(p.capability)._replace(processors=hardware.processors(p.x.device))
    part_rows = cost.part_rows(key(p)._replace(rows=p.rows), config, gpu)

    def memory(rows: int, *shape: int) -> Tensor:
        parts = -(-p.rows // rows)
        return p.x.new_empty(parts, *shape, p.inputs, p.outputs, dtype=p.x.dtype if parts == 1 else p.work)

    splines = None if p.form == "none" else memory(part_rows[0], p.spline_count)
    return [splines, None if p.base == "none" else memory(part_rows[1])], part_rows


def _result(p: Problem, memory: Sequence[Tensor | None]) -> Any:
    """Return the result of a contraction from the memory into which its kernels have written."""
    if p.name != "G":
        return memory[0]
    return _weights(p, *(part if part is None else part[0] if len(part) == 1 else part.sum(0) for part in memory))


def _weights(p: Problem, splines: Tensor | None, base: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the results of G in the dtype of x. If ``splines`` is None, the derivative of the splines is 0."""
    if splines is None:
        nan = torch.where(p.x.isnan(), p.x, 0.0).sum(0)  # the result is NaN for each input that is NaN in any row
        splines = nan.view(1, p.inputs, 1).repeat(p.spline_count, 1, p.outputs)
    return splines.to(p.x.dtype), None if base is None else base.to(p.x.dtype)


def _empty(name: str, x: Tensor, knots: Tensor, operands: Operands, basis: Basis) -> Any:
    """Return a contraction one of whose sizes is 0."""
    if name == "H":
        return x.new_zeros(x.shape)
    if name == "F":
        return x.new_zeros(len(x), operands.weight.shape[2])
    shape = x.shape[1], operands.g.shape[1]
    splines = x.new_zeros(basis.splines_of(knots), *shape)
    return splines, None if basis.base == "none" else x.new_zeros(shape)


# -- repeated contractions -------------------------------------------------------------------------


MAX_RECORDS = 1024  # maximum number of records in memory; a record takes about 3 KB


class Record(NamedTuple):
    """A record of the launches of a contraction, which can be repeated with other tensors of the same layout.

    ``converted`` has the number and the dtype of each operand that the kernels need in a different dtype or layout.
    ``memory`` has the shape and the dtype of each result that the kernels write, and ``in_parts`` whether the parts of
    the result must be summed. Tensors are numbered in the order ``(x, knots, *operands)``, followed by the results.
    """

    launches: list[Repeat]
    converted: list[tuple[int, torch.dtype]]
    memory: list[tuple[tuple[int, ...], torch.dtype] | None]
    in_parts: list[bool]
    name: str

    def run(self, given: Sequence[Tensor | None]) -> Any:
        x, tensors = given[0], list(given)
        assert x is not None
        for number, dtype in self.converted:
            tensors[number] = converted(tensors[number], dtype)
        memory: list[Tensor | None] = []
        for each in self.memory:
            memory.append(None if each is None else x.new_empty(each[0], dtype=each[1]))
        tensors += memory
        for launch in self.launches:
            launch.run(tensors)
        if True in self.in_parts:
            pairs = zip(memory, self.in_parts)
            memory = [each.sum(0).to(x.dtype) if parts and each is not None else each for each, parts in pairs]
        return tuple(memory) if self.name == "G" else memory[0]


def _place(name: str, tensors: Sequence[Tensor | None], basis: Basis, derivative: int, tuning: bool) -> tuple:
    """Return everything on which the choice of the kernels, their compilation and their arguments depend.

    The layout of each tensor includes the alignment of its address, for which Triton compiles different loads.
    """
    x = tensors[0]
    assert x is not None
    layouts = [
        None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16, t.is_neg())
        for t in tensors
    ]  # fmt: skip
    precision = hardware.precision(torch.float32)  # x of another dtype may also be multiplied in float32
    settings = precision, torch.are_deterministic_algorithms_enabled(), tuning
    return name, derivative, basis, x.device, *settings, *layouts


def _record(
    p: Problem,
    given: Sequence[Tensor | None],
    memory: Sequence[Tensor | None],
    launches: Sequence[tuple[Launch, Any]],
) -> Record | None:
    """Return the record of a contraction that has just been computed, or None if it cannot be repeated."""
    used = (p.x, p.knots, p.v, p.weight, p.base_weight, p.g)
    changed = [(number, t) for number, t in enumerate(used) if t is not None and t is not given[number]]
    if not all(t.is_contiguous() for _, t in changed):
        return None
    repeats: list[Repeat] = []
    for launch, compiled in launches:
        repeat = launch.repeat(compiled, (*used, *memory))
        if repeat is None:
            return None
        repeats.append(repeat)
    in_parts = [p.name == "G" and t is not None and len(t) > 1 for t in memory]
    shapes = []
    for t, parts in zip(memory, in_parts):
        whole = 1 if p.name == "G" and not parts else 0  # the first dimension to keep
        shapes.append(None if t is None else (tuple(t.shape[whole:]), t.dtype))
    return Record(repeats, [(number, t.dtype) for number, t in changed], shapes, in_parts, p.name)


def features(x: Tensor, knots: Tensor, basis: Basis, derivative: int) -> Tensor:
    """Return the d-th derivative of all splines ``[N, K, I]`` in the working dtype."""
    count = basis.splines_of(knots)
    made = x.new_empty(len(x), count, x.shape[1], dtype=working_dtype(x.dtype))
    if made.numel() == 0 or derivative > basis.order:
        return made.zero_()
    p = problem("F", x, knots, Operands(weight=x.new_empty(count, x.shape[1], 1)), basis, derivative)
    return chunked.features(p, made)


def launched(p: Problem, config: Config, memory: Sequence[Tensor | None], part_rows: tuple[int, int]) -> Launch:
    """Return the kernel launch that computes a contraction.

    The chunked and banded implementations are excluded, because they also need matrix products by PyTorch.

    Args:
        p: the contraction with its operands.
        config: the configuration.
        memory: the memory for the results: ``y [N, O]`` of F, ``h [N, I]`` of H, or for G the results for the splines
            ``[parts, K, I, O]`` and for the base function ``[parts, I, O]``, each of which may be None.
        part_rows: number of rows in each part of G except the last, for the splines and for the base function.
    """
    results = (*memory, *part_rows) if p.name == "G" else memory
    return _launches_by(config.way)[p.name](p, config, *results)


@functools.cache
def _launches_by(way: str) -> dict[str, Callable[..., Launch]]:
    """Return the functions that prepare the launches of an implementation, by the names of the contractions."""
    if way == "gather":
        return {"F": launch_gather_out, "H": launch_gather_in}
    if way == "fused":
        return {"F": launch_out, "G": launch_weight, "H": launch_in}
    from .hopper import contract_in, contract_out, contract_weight

    return {"F": contract_out.launch_out, "G": contract_weight.launch_weight, "H": contract_in.launch_in}


def _base_out(p: Problem) -> Tensor:
    """Return F for a derivative above the spline order."""
    if p.base_weight is None:
        nan = torch.where(p.x.isnan(), p.x, 0.0).sum(1, keepdim=True)  # the result is NaN in each row that has a NaN
        return nan.expand(-1, p.outputs).contiguous()
    base = base_function(p.x.to(p.work), p.base, p.derivative)
    base = base if p.v is None else base * p.v
    return chunked.product(p, base.to(p.matmul_dtype), p.base_weight)


def _base_in(p: Problem) -> Tensor:
    """Return H for a derivative above the spline order."""
    assert p.g is not None
    if p.base_weight is None:
        return torch.where(p.x.isnan(), p.x, 0.0)
    return base_function(p.x.to(p.work), p.base, p.derivative) * chunked.product(p, p.g, p.base_weight.t())


def describe(name: str, x: Tensor, outputs: int, count: int, basis: Basis, derivative: int) -> str:
    """Return a description in words of the kernels that run for a contraction of the given sizes."""
    rows, inputs = x.shape
    if rows * inputs * outputs == 0:
        return "nothing: one of the sizes is 0"
    if form_of(basis, derivative) == "none":
        return "no splines: their derivative is 0; the base function by plain products"

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=x.dtype, device="meta")

    operands = Operands(g=empty(rows, outputs))
    if name != "G":
        base_weight = None if basis.base == "none" else empty(inputs, outputs)
        operands = operands._replace(weight=empty(count, inputs, outputs), base_weight=base_weight)
    knots = empty(inputs, count + basis.order + 1)
    rows_of_x = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    p = problem(name, rows_of_x, knots, operands, basis, derivative, hardware.capability(x.device))
    config = choose(key(p), p.capability, x.device)
    made = {"cardinal": "by truncated powers", "local": "from their cell's active ones"}[p.form]
    precision = f" ({p.precision})" if p.matmul_dtype == torch.float32 else ""
    product = str(p.matmul_dtype).removeprefix("torch.") + precision
    tile = f"tiles of {config.rows} x {config.columns}"
    if config.way == "gather":
        return f"gather: the {basis.order + 1} active of {count} splines of each input, {tile}, {config.warps} warps"
    if config.way == "banded":
        return (
            f"banded: the {basis.order + 1} active of {count} splines of each input on tensor cores, {config.rows} rows"
        )
    if config.way == "chunked":
        return f"chunked: features written {made}, {len(list(chunked.chunks(p)))} chunks, products by PyTorch"
    loads = "descriptors" if config.descriptors else "pointers"
    if config.way == "pipelined":
        loads += ", waits by hand"
    return (
        f"{config.way}: features made in registers {made}, products in {product}, {tile} over {config.inner}, "
        f"{config.warps} warps, {config.stages} stages, {loads}"
    )
