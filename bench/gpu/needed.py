"""Which builds of kernels the stages need, found without a GPU: what is launched is kept instead of run, on tensors
that have sizes but no memory. As on a Hopper GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import Basis, basis_of, uniform_knots
from fastkan_kernels.trilinear import CONTRACTIONS, Operands

from . import touch, trials, tune, ways
from .place import Place
from .rows import CEILINGS, Graphed, Row, measured
from .rows import CONTRACTIONS as OF_A_STEP
from .settings import DTYPES, precision

ALIGNED = 16  # bytes, of which Triton makes use
ON_GPU = Place(torch.device("cuda"))  # only asked what is measured there
CPU, META = torch.device("cpu"), torch.device("meta")


class Pointer:
    """A tensor's dtype at an address that 16 does not divide."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def data_ptr(self) -> int:
        return ALIGNED // 2

    def __repr__(self) -> str:
        return f"Pointer({self.dtype})"


class Kept(NamedTuple):
    """A launch as the compiler sees it; can be sent to another process."""

    kernel: str  # module:name
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def key(self) -> tuple:
        """Equal for what is one build."""
        seen = tuple((name, _seen(value)) for name, value in self.arguments.items())
        return self.kernel, seen, tuple((n, str(v)) for n, v in self.constants.items()), self.warps, self.stages


@contextmanager
def launches(then: Callable[[Any], None] = lambda launch: None) -> Iterator[dict[tuple, Kept]]:
    """What is launched meanwhile, by its key.

    Args:
        then: done with each launch.
    """
    from fastkan_kernels.backends.triton.launch import Launch

    found: dict[tuple, Kept] = {}
    run = Launch.run

    def keep(launch: Any) -> None:
        kept = Kept(
            f"{launch.kernel.fn.__module__}:{launch.kernel.fn.__qualname__}",
            {name: _without_memory(value) for name, value in launch.arguments.items()},
            launch.constants,
            launch.warps,
            launch.stages,
        )
        found.setdefault(kept.key, kept)
        then(launch)

    Launch.run = keep  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Launch.run = run  # type: ignore[method-assign]


def of_stage(stage: str, patterns: list[str] | None = None) -> tuple[list[Any], dict[tuple, Kept]]:
    """What a stage does, and the builds that it needs; none of the tests' are known."""
    items = [item for item in _items(stage) if not patterns or any(p in item.name for p in patterns)]
    with launches() as found:
        for item in items:
            touch_one(item)
    return items, found


def _items(stage: str) -> Sequence[Any]:
    if stage == "hazard":
        return trials.trials(False)
    if stage == "speed":
        return measured(False)
    if stage == "tune":
        return tune.choices(False)
    return touch.touched(ON_GPU) if stage == "sanitizer" else []


def touch_one(item: Any) -> None:
    """Launch what one thing of a stage does."""
    if isinstance(item, trials.Trial):
        _trial(item)
    elif isinstance(item, Row):
        _row(item)
    elif isinstance(item, tune.Choice):
        _choice(item)
    elif isinstance(item, Graphed):
        for inputs, outputs in item.case.layers:
            _layer(Row(item.case.rows, inputs, outputs, item.case.grid_size, "highest", "step"), {})
    else:
        assert item == CEILINGS


def _trial(trial: trials.Trial) -> None:
    rows, inputs, outputs = trial.sizes
    order = trials.ORDERS[trial.numbers]
    generator = torch.Generator().manual_seed(0)
    knots = trials.knots_of(trial, inputs, order, generator)
    basis = basis_of(knots, order, "identity" if trial.exact else "silu")
    slots = _slots(trial.contraction, rows, inputs, outputs, trial.grid + order, trial.setting, trial.multiplied)
    call = _Call(trial.contraction, rows, inputs, knots, slots, _rounded(basis, trial.setting), trial.derivative)
    with precision(trial.setting, "cpu"):
        candidates = call.candidates(trial.setting)
        if trial.way != "auto":
            candidates = [config for config in candidates if config.way == trial.way]
        for config in candidates[:1]:
            call.made(trial.setting, config)
            if not trial.exact and config.way == "fused":
                call.made(trial.setting, config._replace(stages=1))


def _row(row: Row) -> None:
    _layer(row, {})
    with precision(row.dtype, "cpu"):
        calls = _calls(row)
        layer = SimpleNamespace(
            spline_weight=calls["H"].slots.weight, base_weight=calls["H"].slots.base_weight,
            knots=calls["H"].meta_knots, basis=calls["H"].basis,
        )  # fmt: skip
        x, upstream = calls["H"].x(row.dtype), calls["H"].slots.g
        for way in ways.WAYS:
            try:
                names = "F" if row.mode == "forward" else "FGH"
                configs = ways.of_layer(way, layer, x, upstream, names)
            except ways.NoSuchWay:
                continue
            _layer(row, configs)


def _layer(row: Row, configs: dict[str, Any]) -> None:
    with precision(row.dtype, "cpu"), ways.forced(configs):
        for name, call in _calls(row).items():
            if name == "F" or row.mode == "step":
                call.made(row.dtype)


def _choice(choice: tune.Choice) -> None:
    with precision(choice.row.dtype, "cpu"):
        call = _calls(choice.row)[choice.contraction]
        for config in call.candidates(choice.row.dtype):
            call.made(choice.row.dtype, config)


def _calls(row: Row) -> dict[str, _Call]:
    knots = uniform_knots(row.inputs, row.grid, row.case.order)
    basis = _rounded(basis_of(knots, row.case.order), row.dtype)
    found = {}
    for name, derivative in OF_A_STEP:
        slots = _slots(name, row.rows, row.inputs, row.outputs, row.grid + row.case.order, row.dtype, False)
        found[name] = _Call(name, row.rows, row.inputs, knots, slots, basis, derivative)
    return found


class _Call(NamedTuple):
    """A contraction on tensors without memory."""

    name: str
    rows: int
    inputs: int
    knots: Tensor
    slots: Operands
    basis: Basis
    derivative: int

    @property
    def meta_knots(self) -> Tensor:
        return torch.empty_like(self.knots, device=META)

    def x(self, setting: str) -> Tensor:
        return torch.empty(self.rows, self.inputs, dtype=DTYPES[setting], device=META)

    def candidates(self, setting: str) -> list[Any]:
        arguments = (self.x(setting), self.meta_knots, self.slots, self.basis, self.derivative)
        return ways.candidates(self.name, *arguments)

    def made(self, setting: str, config: Any = None) -> None:
        from fastkan_kernels.backends.triton import dispatch

        contract = partial(dispatch.contract, self.name)
        with ways.forced({} if config is None else {self.name: config}):
            contract(self.x(setting), self.meta_knots, self.slots, self.basis, self.derivative)


def _slots(name: str, rows: int, inputs: int, outputs: int, count: int, setting: str, multiplied: bool) -> Operands:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPES[setting], device=META)

    v = empty(rows, inputs) if multiplied and name != "H" else None
    found = Operands(v, empty(count, inputs, outputs), empty(inputs, outputs), empty(rows, outputs))
    return found.without(CONTRACTIONS[name].free)


def _rounded(basis: Basis, setting: str) -> Basis:
    return basis._replace(matmul_dtype=torch.bfloat16) if setting == "autocast" else basis


def _without_memory(value: Any) -> Any:
    if isinstance(value, Tensor):
        aligned = value.data_ptr() % ALIGNED == 0
        return torch.empty(1, dtype=value.dtype, device=META) if aligned else Pointer(value.dtype)
    if _is_descriptor(value):
        base = value.base
        return dataclasses.replace(value, base=torch.empty(base.shape, dtype=base.dtype, device=META))
    return value


def _is_descriptor(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and hasattr(value, "block_shape")


def _seen(value: Any) -> str:
    """As Triton tells arguments apart."""
    if isinstance(value, Tensor):
        return f"{value.dtype} aligned"
    if _is_descriptor(value):
        return f"{value.base.dtype} {value.block_shape} {getattr(value, 'layout', '')}"
    if isinstance(value, int) and value != 1:
        return f"i{32 if value < 1 << 31 else 64}{' by 16' * (value % ALIGNED == 0)}"
    return str(value)
