"""Descriptions of the kernels and configurations that static checks compile without a GPU.

The arguments of each kernel come from the launch functions of real runs, which are called with meta tensors here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...basis import Basis
from ...trilinear import CONTRACTIONS, Operands
from .dispatch import launched_out, launched_weight
from .kernels.contract_in import launch_in
from .kernels.contract_weight import parts_of
from .kernels.features import launch_dot, launch_write
from .kernels.gather import launch_gather_in
from .launch import Launch
from .problem import Problem, problem
from .tuning.config import Config
from .tuning.key import key
from .tuning.rules import by_way, overlaps, ways_of

ROWS, INPUTS, GRID = 8192, 256, 5
_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_SHORT |= {torch.int16: "i16", torch.int32: "i32"}


class Build(NamedTuple):
    """The compilation of a kernel, and the properties that the compiled machine code must have."""

    name: str
    kernel: Any  # a Triton ``JITFunction``
    signature: dict[str, str]  # name of the type of each argument in Triton
    constants: dict[str, Any]
    divisible: tuple[str, ...]  # names of the arguments that are divisible by 16
    capability: int
    warps: int
    stages: int
    tensor_cores: bool  # whether the kernel's matrix products must run on tensor cores
    overlaps: bool  # whether features must be computed while matrix products run
    elements: int  # number of features that a program computes between two matrix products; 0 if not checked
    keeps_nan: bool  # whether minimum and maximum instructions on data must propagate NaN


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
    """Return a selection of kernel compilations.

    The selection covers each compute capability, kernel, dtype and form of splines.
    """
    half = Setting()
    single = Setting(dtype=torch.float32, precision="tf32x3", outputs=64)
    chosen = [
        *(half._replace(name=name) for name in "FGH"),
        *(half._replace(name=name, uniform=False, order=3, outputs=64) for name in "FGH"),
        *(single._replace(name=name) for name in "FGH"),
        *(half._replace(name=name, way="pipelined") for name in "FG"),
        half._replace(way="chunked"),
        half._replace(way="chunked", name="H"),
        single._replace(way="gather", precision="ieee"),
        single._replace(way="gather", precision="ieee", name="H"),
    ]
    on_hopper = [build for setting in chosen for build in builds_of(setting, 90)]
    older = [half, half._replace(name="G"), half._replace(name="H"), half._replace(descriptors=False, outputs=7)]
    on_ampere = [build for setting in older for build in builds_of(setting, 80)]
    double = list(builds_of(Setting(dtype=torch.float64, outputs=64), 90))
    return on_hopper + on_ampere + double


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
        for base in ("identity", "none"):
            yield bfloat16._replace(base=base)
        for order in (1, 3, 5):
            yield Setting(name, torch.float64, "ieee", order=order, derivative=1 % order, outputs=64)
        for uniform in (True, False):  # Triton compiles a size of 1 as a constant
            yield Setting(name, uniform=uniform, outputs=1, inputs=1, rows=1, descriptors=False)
            yield Setting(name, uniform=uniform, outputs=5, inputs=2, rows=1000, descriptors=False)
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
    for base in ("identity", "none"):
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
    if p.form == "none":  # no kernel of splines is launched for a derivative above the spline order
        return
    if setting.way not in ways_of(key(p), capability):
        return
    config = config or _config(setting, p)
    for part, launch in _launches(p, config):
        yield _build(setting, p, config, launch, part)


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


def _launches(p: Problem, config: Config) -> Iterator[tuple[str, Launch]]:
    y, h = p.x.new_empty(p.rows, p.outputs), p.x.new_empty(p.rows, p.inputs)
    if config.way == "chunked":
        psi = p.x.new_empty(p.rows, p.spline_count, p.inputs, dtype=p.matmul_dtype)
        rows = slice(0, p.rows)
        for base in (False, True):
            if p.name == "F":
                yield " base" * base, launch_write(p, config, rows, psi, base)
            else:
                yield " base" * base, launch_dot(p, config, rows, psi, h.to(p.work), base)
    elif config.way == "banded":
        from .banded import launches

        yield from zip((" locate", ""), launches(p, config), strict=True)
    elif p.name == "F":
        yield "", launched_out(p, config, y)
    elif p.name == "H":
        yield "", (launch_gather_in if config.way == "gather" else launch_in)(p, config, h)
    else:
        for base in (False, True):
            # The kernel of the base function is the same for every spline order, so it is built for order 3 only.
            if base and (p.base == "none" or p.basis.order != 3):
                continue
            parts, part_rows = parts_of(p, config)
            shape = (parts, 1 if base else p.spline_count, p.inputs, p.outputs)
            dw = p.x.new_empty(shape, dtype=p.x.dtype if parts == 1 else p.work)
            yield " base" * base, launched_weight(p, config, dw, part_rows, base)


def _build(s: Setting, p: Problem, config: Config, launch: Launch, part: str) -> Build:
    signature = {
        **{k: _type_of(a) for k, a in launch.arguments.items()},
        **dict.fromkeys(launch.constants, "constexpr"),
    }
    signature = {name: signature[name] for name in launch.kernel.arg_names}
    constants = dict(launch.constants)
    # Triton's own launcher also compiles an argument of 1 as a constant.
    for name, argument in launch.arguments.items():
        if isinstance(argument, int) and argument == 1:
            signature[name], constants[name] = "constexpr", 1
    fused = config.way in ("fused", "pipelined")
    makes = fused and p.name in "FG"
    return Build(
        _name(s, p, config, part),
        launch.kernel,
        signature,
        constants,
        tuple(k for k, a in launch.arguments.items() if _divisible(a) and signature[k] != "constexpr"),
        p.capability,
        launch.warps,
        launch.stages,
        # For a single row, the kernel of G has no loop, and the check searches for matrix products in loops only.
        tensor_cores=fused and p.matmul_dtype != torch.float64 and not (p.name == "G" and p.rows == 1),
        overlaps=overlaps(config),
        elements=config.rows * config.inner if makes else 0,
        # In float64, saturation to [0, 1] is compiled to a maximum instruction, which replaces NaN by 0 on purpose.
        keeps_nan=p.matmul_dtype != torch.float64,
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


def _type_of(argument: Any) -> str:
    if hasattr(argument, "layout") and hasattr(argument, "block_shape"):  # a Gluon descriptor
        block = ",".join(map(str, argument.block_shape))
        return f"tensordesc<{_SHORT[argument.base.dtype]}[{block}],{argument.layout!r}>"
    if isinstance(argument, TensorDescriptor):
        return f"tensordesc<{_SHORT[argument.base.dtype]}{list(argument.block_shape)}>"
    if isinstance(argument, Tensor):
        return f"*{_SHORT[argument.dtype]}"
    return "i32"


def _divisible(argument: Any) -> bool:
    return isinstance(argument, Tensor) or (isinstance(argument, int) and argument % 16 == 0)
