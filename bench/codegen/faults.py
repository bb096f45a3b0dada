"""Kernels that are wrong on purpose: ``python -m bench.codegen --builds bench.codegen.faults`` must find each fault.

The name of a build begins with the name of the check that the build must fail, or with ``ok``. The check for serialised
products has no build, because no kernel is certain to be serialised by ptxas.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

from fastkan_kernels.backends.triton.builds import Build
from fastkan_kernels.backends.triton.launch import Launch


@triton.jit
def spilling(x_ptr, y_ptr, N, SIZE: tl.constexpr):
    """Compute more sums than a warp has registers."""
    at = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for n in range(N):
        total += tl.load(x_ptr + n * SIZE + at) * total
    tl.store(y_ptr + at, total)


@triton.jit
def positive(x_ptr, y_ptr, SIZE: tl.constexpr):
    """Compute a maximum that is 0 where x is NaN."""
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, tl.maximum(tl.load(x_ptr + at), 0.0))


@triton.jit
def impossible(x_ptr):
    """Fail to compile."""
    tl.static_assert(False, "on purpose")


@triton.jit
def product(
    x_ptr, w_ptr, y_ptr, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, SQUARE: tl.constexpr
):
    """Multiply a matrix [ROWS, N] by a matrix [N, COLUMNS].

    If SQUARE, the left operand is squared in registers, block after block.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n0 in range(0, N, INNER):
        n = n0 + tl.arange(0, INNER)
        x = tl.load(x_ptr + rows * N + n[None, :])
        if SQUARE:
            x = (x.to(tl.float32) * x).to(x.dtype)
        y = tl.dot(x, tl.load(w_ptr + n[:, None] * COLUMNS + columns), y, input_precision="ieee")
    tl.store(y_ptr + rows * COLUMNS + columns, y)


@triton.jit
def repeated(x_ptr, w_ptr, y_ptr, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr):
    """Compute the left operand of a product in registers.

    Triton before 3.8 overwrites the registers while the product runs.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n0 in tl.range(0, N, INNER, num_stages=1):
        n = n0 + tl.arange(0, INNER)
        x = tl.load(x_ptr + rows * N + n[None, :]).to(tl.float32)
        for k in range(K):
            w = tl.load(w_ptr + (k * N + n[:, None]) * COLUMNS + columns)
            z = 1.0 - tl.abs(x - k)
            y = tl.dot((z * z * z).to(tl.bfloat16), w, y)
    tl.store(y_ptr + rows * COLUMNS + columns, y)


class Crashing:
    """A kernel whose compilation ends the process."""

    __name__ = "crashing"

    def warmup(self, **options: Any) -> None:
        os._exit(1)


def _build(name: str, kernel: Any, dtype: torch.dtype, constants: dict[str, int], **claims: Any) -> Build:
    launch = {"warps": claims.pop("warps", 8), "stages": claims.pop("stages", 3)}
    arguments = {
        argument: 64 if argument in ("N", "K") else torch.empty(1, dtype=dtype, device="meta")
        for argument in kernel.arg_names
        if argument not in constants
    }
    if "w_ptr" in arguments:
        arguments["y_ptr"] = torch.empty(1, device="meta")
    claims = {"capability": 90, "keeps_nan": False, **claims}
    return Build(name, Launch(kernel, (1,), arguments, constants, **launch), **claims)


def builds(capability: int) -> list[Build]:
    """Return the builds with all faults, compiled for a compute capability."""
    return [build for build in sample() if build.capability == capability]


def sample() -> list[Build]:
    """Return the builds with all faults."""
    half, single = torch.bfloat16, torch.float32
    tile = {"ROWS": 128, "COLUMNS": 128, "INNER": 64, "SQUARE": False}
    wide = tile | {"COLUMNS": 256}
    crash: Any = Launch(Crashing(), (1,), {}, {})
    cores: dict[str, Any] = {"tensor_cores": True}
    older: dict[str, Any] = {"tensor_cores": True, "capability": 80}
    return [
        _build("ok product sm90", product, half, tile, **cores),
        _build("ok product sm80", product, half, tile, stages=2, **older),
        _build("spills", spilling, single, {"SIZE": 8192}, warps=1),
        _build("shared memory sm90", product, half, wide, stages=6, **cores),
        _build("shared memory sm80", product, half, tile, stages=7, **older),
        _build("NaN", positive, single, {"SIZE": 1024}, keeps_nan=True),
        _build("tensor cores", product, single, tile | {"INNER": 16}, **cores),
        _build("hazard", repeated, half, {n: wide[n] for n in ("ROWS", "COLUMNS", "INNER")}, elements=8192, **cores),
        _build("compile", impossible, single, {}),
        _build("ok product sm90", product, half, tile)._replace(name="compile crashed", launch=crash),
    ]
