"""Lists of kernel compilations that can be checked, or done ahead of time, on a machine without a GPU.

The arguments of each kernel come from the same launch functions as in a real run, which are called with meta tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...basis import Basis
from ...trilinear import CONTRACTIONS, Operands
from .config import Config, shared_limit
from .dispatch import run
from .key import key
from .launch import Launch, launched_by
from .problem import Problem, problem
from .rules import by_way, candidates, overlaps, ways_of
from .selection import override, ptxas_version, tuned, write_table

__all__ = [
    "Build", "Setting", "builds", "builds_of", "configs_of", "override", "problem_of", "ptxas_version", "sample",
    "shared_limit", "tuned", "write_table",
]  # fmt: skip

ROWS, INPUTS, GRID = 8192, 256, 5
_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_SHORT |= {torch.int16: "i16", torch.int32: "i32"}


class Build(NamedTuple):
    """A kernel launch that is compiled but not run, and the properties that the machine code must have."""

    name: str
    launch: Launch
    capability: int
    tensor_cores: bool = False  # whether the kernel's matrix products must run on tensor cores
    overlaps: bool = False  # whether features must be computed while matrix products run
    elements: int = 0  # number of features that a program computes between two matrix products; 0 if not checked
    keeps_nan: bool = True  # whether minimum and maximum instructions on data must propagate NaN


class Setting(NamedTuple):
    """The sizes and options of a contraction for which a kernel is compiled."""

    name: str = "F"
    dtype: torch.dtype = torch.bfloat16
    precision: str = "ieee"
    uniform: bool = True
    order: int = 3
    derivative: int = 0
    base: str = "silu"
    outputs: int = 256
    inputs: int = INPUTS
    rows: int = ROWS
    multiplied: bool = False
    way: str = "fused"
    descriptors: bool = True
    grid: int = GRID
    matmul_dtype: torch.dtype | None = None  # dtype of the factors of matrix products; if None, ``dtype``


def builds(capability: int) -> list[Build]:
    """Return all kernel compilations that are checked for a compute capability, 80 or 90."""
    found = (build for setting in _settings() for build in builds_of(setting, capability))
    return list({build.name: build for build in found}.values())


def sample() -> list[Build]:
    """Return a small selection of the kernel compilations of :func:`builds`.

    The selection covers each compute capability, kernel, dtype and form of splines.
    """
    half = Setting()
    local = half._replace(uniform=False, outputs=64)
    single = Setting(dtype=torch.float32, precision="tf32x3", outputs=64)
    chosen = [
        *(half._replace(name=name) for name in "FGH"),
        *(half._replace(name=name, way="pipelined") for name in "FGH"),
        *(half._replace(name=name, way="banded", grid=256) for name in "FH"),
        *(local._replace(name=name) for name in "FH"),
        *(single._replace(name=name) for name in "FH"),
        single._replace(name="H", outputs=7, descriptors=False),
        *(half._replace(name=name, way="chunked") for name in "FH"),
        *(single._replace(name=name, way="gather", precision="ieee") for name in "FH"),
        Setting(dtype=torch.float64, outputs=64),
    ]
    twice = half._replace(name="G", derivative=2, multiplied=True)  # in a double backward
    older = [half, twice, half._replace(name="H", descriptors=False, outputs=7)]
    on_hopper = [build for setting in chosen for build in builds_of(setting, 90)]
    return on_hopper + [build for setting in older for build in builds_of(setting, 80)]


def _settings() -> Iterator[Setting]:
    halves = [(torch.bfloat16, "ieee"), (torch.float16, "ieee")]
    dtypes = [*halves, (torch.float32, "tf32"), (torch.float32, "tf32x3")]
    for name in "FGH":
        for dtype, precision in dtypes:
            plain = Setting(name, dtype, precision)
            for outputs in (64, 256):
                yield plain._replace(outputs=outputs)
                yield plain._replace(outputs=outputs, uniform=False)
            yield plain._replace(outputs=7, descriptors=False)
        bfloat16 = Setting(name)
        for dtype, precision in dtypes:
            for order in (1, 3, 5) if dtype != torch.float16 else (3,):
                for derivative in range(min(order, 2) + 1):
                    some = Setting(name, dtype, precision, True, order, derivative)
                    some = some._replace(multiplied=derivative > 0 and name != "H")
                    yield some
                    yield some._replace(uniform=False)
                    if order == 5:
                        yield some._replace(rows=32, inputs=64, outputs=128)
        for order in (2, 4):
            yield bfloat16._replace(order=order)
            yield bfloat16._replace(order=order, uniform=False)
        for base in ("gelu", "identity", "none"):
            yield bfloat16._replace(base=base)
        for order in (1, 3, 5):
            yield Setting(name, torch.float64, "ieee", order=order, derivative=1 % order, outputs=64)
        for uniform in (True, False):  # sizes of 1 are included because Triton compiles them as constants
            yield Setting(name, uniform=uniform, outputs=1, inputs=1, rows=1, descriptors=False)
            tiny = Setting(name, uniform=uniform, outputs=5, inputs=2, rows=1000, descriptors=False)
            yield tiny
            yield tiny._replace(dtype=torch.float32, precision="tf32x3", derivative=int(name == "H"))
    for name in "FH":
        for way in ("gather", "chunked"):
            yield Setting(name, outputs=1, inputs=1, rows=1, descriptors=False, way=way)
        for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "tf32x3"), (torch.float64, "ieee")):
            for order in (1, 3, 5):
                yield Setting(name, dtype, precision, order=order, way="gather", outputs=64)
                for uniform in (True, False):
                    yield Setting(name, dtype, precision, uniform, order, way="chunked")
        for dtype in (torch.bfloat16, torch.float16):
            for order in (1, 3):
                for uniform in (True, False):
                    banded = Setting(name, dtype, uniform=uniform, order=order, way="banded", grid=256)
                    yield banded._replace(derivative=1, inputs=256, rows=8192)
    for name in "FG":
        yield from _pipelined(Setting(name, way="pipelined"))


def _pipelined(plain: Setting) -> Iterator[Setting]:
    """Yield the settings of the pipelined implementation, which supports 16-bit dtypes on Hopper GPUs."""
    for dtype in (torch.bfloat16, torch.float16):
        for outputs in (16, 64, 128, 256):
            for uniform in (True, False):
                yield plain._replace(dtype=dtype, outputs=outputs, uniform=uniform)
    for order in (1, 2, 3, 4, 5):
        for derivative in range(min(order, 3)):
            for uniform in (True, False) if order <= 3 else (True,):
                for multiplied in (False, True):
                    some = plain._replace(order=order, derivative=derivative, uniform=uniform, multiplied=multiplied)
                    yield some
                    # Under autocast, the dtype of matrix products differs from the dtype of x.
                    yield some._replace(matmul_dtype=torch.bfloat16, dtype=torch.float32)
    for base in ("gelu", "identity", "none"):
        yield plain._replace(base=base)
        yield plain._replace(base=base, uniform=False)
    yield plain._replace(rows=40, inputs=8, outputs=8)
    yield plain._replace(rows=1000, inputs=24, outputs=40)


def builds_of(setting: Setting, capability: int, config: Config | None = None) -> Iterator[Build]:
    """Yield the kernel compilations for a setting.

    Args:
        setting: sizes and options of the contraction.
        capability: compute capability of the GPU, 80 or 90.
        config: the configuration. If None, the rules choose a configuration of the implementation ``setting.way``.
    """
    p = problem_of(setting, capability)
    if p.form == "none":  # no kernel that computes splines is launched for a derivative above the spline order
        return
    if setting.way not in ways_of(key(p), capability):
        return
    config = config or _config(setting, p)
    for number, launch in enumerate(_launches(p, config)):
        part = f" {launch.kernel.__name__.removesuffix('_kernel')}" if number else ""
        yield _build(setting, p, config, launch, part)


def configs_of(setting: Setting, capability: int, every: bool = False) -> list[Config]:
    """Return the configurations of a contraction in all implementations; ``setting.way`` is ignored.

    Args:
        setting: sizes and options of the contraction.
        capability: compute capability of the GPU, 80 or 90.
        every: whether to return all candidates for tuning, the default configuration first. If False, return one
            configuration of each implementation.
    """
    k = key(problem_of(setting, capability))
    return (candidates if every else by_way)(k, capability)


def problem_of(s: Setting, capability: int) -> Problem:
    """Return the problem that a setting describes, with meta tensors as operands."""

    def empty(*shape: int, dtype: torch.dtype = s.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    count = s.grid + s.order
    knots = empty(s.inputs, s.grid + 2 * s.order + 1, dtype=torch.promote_types(s.dtype, torch.float32))
    weight, base_weight = empty(count, s.inputs, s.outputs), empty(s.inputs, s.outputs)
    g, v = empty(s.rows, s.outputs), empty(s.rows, s.inputs) if s.multiplied else None
    operands = Operands(v, weight, None if s.base == "none" else base_weight, g).without(CONTRACTIONS[s.name].free)
    basis = Basis(s.order, s.base, s.uniform, (-1.0, 2.5) if s.uniform else None, s.matmul_dtype)
    precision = s.precision if s.dtype == torch.float32 else None
    return problem(s.name, empty(s.rows, s.inputs), knots, operands, basis, s.derivative, capability, precision)


def _config(s: Setting, p: Problem) -> Config:
    choice = next(c for c in by_way(key(p), p.capability) if c.way == s.way)
    return choice._replace(descriptors=choice.descriptors and s.descriptors)


def _launches(p: Problem, config: Config) -> list[Launch]:
    """Return the first launch of each kernel that computes a contraction. No kernel is run."""
    found: dict[str, Launch] = {}
    with launched_by(lambda launch: found.setdefault(launch.kernel.__name__, launch) and None):
        run(p, config)
    return list(found.values())


def _build(s: Setting, p: Problem, config: Config, launch: Launch, part: str) -> Build:
    fused = config.way in ("fused", "pipelined")
    makes = fused and p.name in "FG"
    return Build(
        _name(s, p, config, part),
        launch,
        p.capability,
        tensor_cores=fused and p.matmul_dtype != torch.float64,
        overlaps=overlaps(config),
        elements=config.rows * config.inner if makes else 0,
        # In float64, clamping to [0, 1] is compiled to a maximum instruction, which replaces NaN by 0 as intended.
        # The pipelined kernels clamp the number of a cell, and restore a NaN of x afterwards.
        keeps_nan=p.matmul_dtype != torch.float64 and config.way != "pipelined",
    )


def _name(s: Setting, p: Problem, config: Config, part: str) -> str:
    knots = p.form if config.way != "gather" else "local"
    precision = f" {p.precision}" if p.matmul_dtype == torch.float32 else ""
    dtype = _SHORT[s.dtype] + (f" in {_SHORT[p.matmul_dtype]}" if p.matmul_dtype != s.dtype else "")
    tiles = [config.rows, config.columns]
    if config.way in ("fused", "pipelined"):
        tiles.append(config.inner)
        if p.name == "H":
            tiles.append(config.splines)
    loads = " descriptors" if config.descriptors else ""
    return (
        f"{p.name} {config.way} {knots}{part} k{s.order} d{s.derivative} {s.base}{' v' * s.multiplied} "
        f"{dtype}{precision} {p.rows}x{p.inputs}x{p.outputs}{f' G{s.grid}' * (s.grid != GRID)} "
        f"in {'x'.join(map(str, tiles))} "
        f"w{config.warps} s{config.stages}{loads} sm{p.capability}"
    )
