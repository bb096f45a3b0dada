"""A cost model that predicts the time of a contraction on a GPU from counts of its operations.

The rules compare implementations by the predictions, and ``python -m bench.gpu`` prints the predictions beside
measured times. The model counts the clocks in which each unit of a streaming multiprocessor is busy: the tensor
cores, the issue of warp instructions, and the path to the L2 cache. The instructions for each feature were counted in
the machine code that ptxas writes (``python -m bench.codegen``). The rates of the GPUs come from the vendors' data
sheets. No constant of the model was measured on a GPU, so each time is a prediction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .config import Config, chunk_rows
from .key import Key

LAUNCH = 3e-6  # seconds between the starts of two dependent kernels on a GPU
LIBRARY_SHARE = 0.85  # share of the tensor cores' rate that matrix products of PyTorch reach
# Clocks of a step in which no unit is busy: barriers, and the latencies of a matrix product and of shared memory.
BUBBLE = {"fused": 350, "pipelined": 200}


class Gpu(NamedTuple):
    """Rates of a GPU. Rates without "second" in their description are for each clock and multiprocessor."""

    processors: int
    hertz: float
    half: int  # multiply-adds of tensor cores in 16-bit dtypes
    tf32: int  # multiply-adds of tensor cores in tf32
    double: int  # multiply-adds in float64
    single: int  # multiply-adds in float32 without tensor cores
    l2: int  # bytes from the L2 cache
    memory: float  # bytes from memory in a second
    shared: int = 128  # bytes from shared memory
    issue: int = 4  # warp instructions


# GPUs by compute capability: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090.
GPUS = {
    80: Gpu(108, 1.41e9, 1024, 512, 64, 64, 47, 1.8e12),
    86: Gpu(82, 1.70e9, 256, 128, 2, 128, 32, 0.9e12),
    89: Gpu(128, 2.52e9, 256, 128, 2, 128, 40, 0.95e12),
    90: Gpu(132, 1.75e9, 2048, 1024, 128, 128, 39, 3.0e12),
    100: Gpu(148, 1.85e9, 2048, 1024, 64, 128, 39, 7.0e12),
    120: Gpu(170, 2.41e9, 256, 128, 2, 128, 40, 1.7e12),
}

# Instructions that a thread runs for each feature inside the loop of matrix products, by contraction, implementation
# and form of the splines. The numbers are medians over the builds of cubic splines in bfloat16.
SLOTS = {
    ("F", "fused", "cardinal"): 9.6,
    ("F", "fused", "local"): 16.0,
    ("F", "pipelined", "cardinal"): 11.5,
    ("F", "pipelined", "local"): 22.0,
    ("G", "fused", "cardinal"): 20.0,
    ("G", "fused", "local"): 135.0,
    ("G", "pipelined", "cardinal"): 14.5,
    ("G", "pipelined", "local"): 60.0,
    ("H", "fused", "cardinal"): 11.5,
    ("H", "fused", "local"): 18.0,
}
SPLIT = 11  # instructions for each factor of a matrix product that tf32x3 splits into two numbers
ENTRY = {"cardinal": 15, "local": 130}  # instructions for each element of x, before its features
GATHERED = 54  # instructions of the gather kernels for each row, input and output
GATHER_LATENCY = 3000  # clocks until the cell of an input is found by bisection and its weights have arrived


def gpu_of(capability: int) -> Gpu:
    """Return the rates of a GPU; a GPU that is not in the table has those of the next lower compute capability."""
    return GPUS[max(c for c in GPUS if c <= max(capability, min(GPUS)))]


class Work(NamedTuple):
    """The work of one kernel launch. Clocks are those of one program that has a multiprocessor to itself."""

    programs: int
    resident: int  # number of programs that run on a multiprocessor at the same time
    tensor: float  # clocks in which the tensor cores are busy
    issue: float  # clocks in which instructions are issued
    l2: float  # clocks in which data arrive from the L2 cache
    idle: float  # clocks in which none of the units is busy
    overlapped: bool  # whether instructions are issued while the tensor cores are busy
    moved: float  # bytes read from and written to memory by all programs

    def seconds(self, gpu: Gpu) -> float:
        """Return the predicted time of the launch."""
        loads_or_products = max(self.tensor, self.l2)
        busiest = max(loads_or_products, self.issue)
        alone = (busiest if self.overlapped else loads_or_products + self.issue) + self.idle

        def span(together: int) -> float:
            return max(alone, together * busiest)

        waves, rest = divmod(self.programs, gpu.processors * self.resident)
        clocks = waves * span(self.resident) + (span(math.ceil(rest / gpu.processors)) if rest else 0.0)
        return max(clocks / gpu.hertz, self.moved / gpu.memory) + LAUNCH


def seconds(k: Key, config: Config, capability: int, processors: int | None = None) -> float:
    """Return the predicted time of a contraction in seconds.

    Args:
        k: properties of the contraction. The number of rows counts as it is, without rounding.
        config: implementation and tile sizes.
        capability: compute capability of the GPU.
        processors: number of multiprocessors of the GPU (default: the number of the GPU in :data:`GPUS`).
    """
    gpu = gpu_of(capability)
    if processors is not None:
        gpu = gpu._replace(processors=processors)
    return _SECONDS[config.way](k, config, gpu)


def product_seconds(rows: int, inner: int, columns: int, dtype: str, precision: str, capability: int) -> float:
    """Return the predicted time of a plain matrix product ``[rows, inner] @ [inner, columns]`` of PyTorch."""
    return _product_seconds(rows, inner, columns, dtype, precision, gpu_of(capability))


def _product_seconds(rows: int, inner: int, columns: int, dtype: str, precision: str, gpu: Gpu) -> float:
    rate = _rate(dtype, precision, gpu)
    if dtype == "float32" and precision != "tf32":
        rate = gpu.single  # PyTorch's products in full float32 do not use tensor cores
    clocks = rows * inner * columns / (LIBRARY_SHARE * rate * gpu.processors)
    moved = _size(dtype) * (rows * inner + inner * columns + rows * columns)
    return max(clocks / gpu.hertz, moved / gpu.memory) + LAUNCH


def _size(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def _rate(dtype: str, precision: str, gpu: Gpu) -> float:
    """Return the multiply-adds of the kernels' matrix products for each clock and multiprocessor."""
    if dtype == "float64":
        return gpu.double
    if dtype == "float32":
        return gpu.tf32 if precision == "tf32" else gpu.tf32 / 3
    return gpu.half


def _resident(k: Key, c: Config, sums: int) -> int:
    """Return how many programs fit on a multiprocessor at the same time, by registers and shared memory."""
    threads = 32 * c.warps
    registers = min(255, 64 + sums * (2 if k.dtype == "float64" else 1) // threads)
    shared = c.stages * c.inner * (c.rows + c.columns * c.splines) * _size(k.dtype)
    return max(1, min(65536 // (threads * registers), (220 << 10) // shared, 2048 // threads))


def _split(k: Key) -> int:
    """Return the number of tf32 products that replace one product of the given dtype and precision."""
    return 3 if k.dtype == "float32" and k.precision != "tf32" else 1


def _features_in_registers(k: Key, c: Config, gpu: Gpu) -> float:
    """Return the work of F or G, which compute features in a loop of matrix products."""
    based, size = k.base != "none", _size(k.dtype)
    if k.contraction == "F":
        programs = math.ceil(k.rows / c.rows) * math.ceil(k.outputs / c.columns)
        blocks = math.ceil(k.inputs / c.inner)
        steps, entries = blocks * (k.spline_count + based), blocks
    else:
        tiles = math.ceil(k.inputs / c.rows) * math.ceil(k.outputs / c.columns)
        programs, steps = tiles * (k.spline_count + based), math.ceil(k.rows / c.inner)
        parts = max(1, min(gpu.processors // programs, steps // 8))
        programs, steps = programs * parts, math.ceil(steps / parts)
        entries = 0
    features = c.rows * c.inner
    made = features * max(
        1.0, 16 * c.warps / c.rows
    )  # several warps that multiply the same rows make the same features
    issued = steps * made * SLOTS[k.contraction, c.way, k.form] + entries * features * ENTRY[k.form]
    if _split(k) > 1:
        issued += steps * (made + c.inner * c.columns) * SPLIT
    fetched = steps * c.inner * c.columns + entries * features
    if k.contraction == "G":
        fetched += steps * features
    weights = k.inputs * k.outputs * (k.spline_count + based)
    work = Work(
        programs,
        _resident(k, c, c.rows * c.columns),
        steps * features * c.columns / _rate(k.dtype, k.precision, gpu),
        issued / 32 / gpu.issue,
        fetched * size / gpu.l2,
        (steps * _split(k) + 3 * entries) * BUBBLE[c.way],
        c.way == "pipelined",
        size * (k.rows * (k.inputs + k.outputs) + weights),
    )
    return work.seconds(gpu)


def _features_after_product(k: Key, c: Config, gpu: Gpu) -> float:
    """Return the work of H, which multiplies each finished matrix product by the features."""
    based, size = k.base != "none", _size(k.dtype)
    blocks, steps = math.ceil(k.spline_count / c.splines), math.ceil(k.outputs / c.inner)
    columns = c.columns * c.splines
    products = c.inner * steps * c.rows * (blocks * columns + based * c.columns)
    features = blocks * c.rows * columns
    fetched = c.inner * steps * (blocks * (c.rows + columns) + based * (c.rows + c.columns))
    issued = features * SLOTS["H", "fused", k.form] + c.rows * c.columns * ENTRY[k.form]
    if _split(k) > 1:
        issued += fetched * SPLIT
    work = Work(
        math.ceil(k.rows / c.rows) * math.ceil(k.inputs / c.columns),
        _resident(k, c, c.rows * columns),
        products / _rate(k.dtype, k.precision, gpu),
        issued / 32 / gpu.issue,
        fetched * size / gpu.l2,
        (blocks + based) * 2 * _split(k) * BUBBLE["fused"],
        False,
        size * (k.rows * (2 * k.inputs + k.outputs) + k.inputs * k.outputs * (k.spline_count + based)),
    )
    return work.seconds(gpu)


def _gathered(k: Key, c: Config, gpu: Gpu) -> float:
    programs = math.ceil(k.rows / c.rows) * (math.ceil(k.outputs / c.columns) if k.contraction == "F" else k.inputs)
    issued = k.rows * k.inputs * max(k.outputs, 32) * GATHERED / 32 / gpu.issue / programs
    size, weights = _size(k.dtype), k.inputs * k.outputs * k.spline_count
    moved = size * (k.rows * (k.inputs + k.outputs) + weights)
    idle = GATHER_LATENCY * (k.inputs if k.contraction == "F" else 1 + math.ceil(k.outputs / c.columns))
    return Work(programs, 4, 0.0, issued, 0.0, idle, True, moved).seconds(gpu)


def _chunked(k: Key, c: Config, gpu: Gpu) -> float:
    """Return the predicted time of features in memory, which PyTorch multiplies in chunks of rows."""
    features, size = k.inputs * (k.spline_count + (k.base != "none")), _size(k.dtype)
    rows = min(k.rows, chunk_rows(k.spline_count * k.inputs * size))
    inner = {"F": (rows, features, k.outputs), "G": (features, rows, k.outputs), "H": (rows, k.outputs, features)}
    product = _product_seconds(*inner[k.contraction], k.dtype, k.precision, gpu)
    slots = SLOTS["F", "fused", k.form] + 6  # the features are also converted and stored
    clocks = rows * features * max(slots / 32 / gpu.issue, 2 * size / gpu.l2) / gpu.processors
    if k.contraction == "G":  # the product of each chunk is added to the sum of the earlier chunks, in float32
        product += 12 * features * k.outputs / gpu.memory
    # Each chunk takes two kernels for features, two products, and a sum.
    return math.ceil(k.rows / rows) * (product + clocks / gpu.hertz + 5 * LAUNCH)


_SECONDS = {
    "fused": lambda k, c, gpu: (_features_after_product if k.contraction == "H" else _features_in_registers)(k, c, gpu),
    "pipelined": _features_in_registers,
    "chunked": _chunked,
    "gather": _gathered,
}
