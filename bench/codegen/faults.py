"""Kernels that are wrong on purpose: ``python -m bench.codegen --builds bench.codegen.faults`` must find each fault.

A build's name begins with the check that it must fail, or with ``ok``. None is certain to be serialised by ptxas.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastkan_kernels.backends.triton.builds import Build


@triton.jit
def spilling(x_ptr, y_ptr, N, SIZE: tl.constexpr):
    """More sums than a warp has registers."""
    at = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for n in range(N):
        total += tl.load(x_ptr + n * SIZE + at) * total
    tl.store(y_ptr + at, total)


@triton.jit
def positive(x_ptr, y_ptr, SIZE: tl.constexpr):
    """A maximum, which takes the 0 where x is NaN."""
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, tl.maximum(tl.load(x_ptr + at), 0.0))


@triton.jit
def impossible(x_ptr):
    """Does not compile."""
    tl.static_assert(False, "on purpose")


@triton.jit
def product(
    x_ptr, w_ptr, y_ptr, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, SQUARE: tl.constexpr
):
    """[ROWS, N] by [N, COLUMNS]; SQUARE makes the left operand in registers, block after block."""
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
    """The left operand made in registers from what an outer loop holds: Triton before 3.9 overwrites it in flight."""
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


def _build(name: str, kernel: Any, dtype: str, constants: dict[str, int], claims: dict[str, Any]) -> Build:
    scalars = dict.fromkeys(("N", "K"), "i32")
    signature = {
        argument: "constexpr" if argument in constants else scalars.get(argument, f"*{dtype}")
        for argument in kernel.arg_names
    }
    if "w_ptr" in signature:
        signature["y_ptr"] = "*fp32"
    divisible = tuple(argument for argument, kind in signature.items() if kind[0] == "*" or argument == "N")
    common = {"capability": 90, "warps": 8, "stages": 3, "tensor_cores": False, "overlaps": False}
    return Build(**{
        "name": name, "kernel": kernel, "signature": signature, "constants": constants, "divisible": divisible,
        **common, "elements": 0, "keeps_nan": False, **claims,
    })  # fmt: skip


def builds(capability: int) -> list[Build]:
    """All faults of a capability."""
    return [build for build in sample() if build.capability == capability]


def sample() -> list[Build]:
    """All faults."""
    tile = {"ROWS": 128, "COLUMNS": 128, "INNER": 64}
    wide = {"ROWS": 128, "COLUMNS": 256, "INNER": 64}
    cores = {"tensor_cores": True}
    half = cores | {"elements": 128 * 64}
    return [
        _build("ok product sm90", product, "bf16", tile | {"SQUARE": False}, cores),
        _build("ok product sm80", product, "bf16", tile | {"SQUARE": False}, cores | {"capability": 80, "stages": 2}),
        _build("spills", spilling, "fp32", {"SIZE": 8192}, {"warps": 1}),
        _build("shared memory sm90", product, "bf16", wide | {"SQUARE": False}, cores | {"stages": 6}),
        _build(
            "shared memory sm80", product, "bf16", tile | {"SQUARE": False}, cores | {"stages": 7, "capability": 80}
        ),
        _build("NaN", positive, "fp32", {"SIZE": 1024}, {"keeps_nan": True}),
        _build("tensor cores", product, "fp32", tile | {"SQUARE": False, "INNER": 16}, cores),
        _build("hazard", repeated, "bf16", wide, half),
        _build("compile", impossible, "fp32", {}, {}),
    ]
