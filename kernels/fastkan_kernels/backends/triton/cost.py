"""A cost model that predicts the time of a contraction on a GPU from counts of its operations.

The rules compare implementations by the predictions, and ``python -m bench.gpu`` prints the predictions beside
measured times. The model counts the clock cycles in which each part of a streaming multiprocessor is busy: the tensor
cores, the issue of warp instructions, and the path to the L2 cache. The instructions for each feature were counted in
the machine code that ptxas writes (``python -m bench.codegen``). The rates of the GPUs come from the vendors' data
sheets. No constant of the model was measured on a GPU, so each time is a prediction.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

from .config import WORD, Config, chunk_rows
from .key import Key

LAUNCH = 3e-6  # seconds between the starts of two dependent kernels on a GPU
# Seconds by which the predicted time of a small contraction may be wrong, because such a time consists of latencies. An
# implementation with more launches is chosen only if its predicted saving exceeds this time.
UNCERTAIN = 8e-6
# Share of the data sheet's rate that matrix products reach on tensor cores, because the clock rate falls under load.
# The cuBLAS library reaches about this share with large matrices on an H100, and the share is assumed for all kernels.
TENSOR_SHARE = 0.85
# Clock cycles of a step in which every part of the multiprocessor waits, because of barriers and of the latencies of
# matrix products and of shared memory.
BUBBLE = {"fused": 350, "pipelined": 30}


class Gpu(NamedTuple):
    """Rates of a GPU, per clock cycle and multiprocessor unless the description says "per second"."""

    processors: int
    hertz: float
    half: int  # multiply-adds of tensor cores in 16-bit dtypes
    tf32: int  # multiply-adds of tensor cores in tf32
    double: int  # multiply-adds in float64
    single: int  # multiply-adds in float32 without tensor cores
    l2: int  # bytes from the L2 cache
    memory: float  # bytes from memory per second
    shared: int = 128  # bytes from shared memory
    issue: int = 4  # warp instructions


# The GPUs are listed by compute capability: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090.
GPUS = {
    80: Gpu(108, 1.41e9, 1024, 512, 64, 64, 47, 1.8e12),
    86: Gpu(82, 1.70e9, 256, 128, 2, 128, 32, 0.9e12),
    89: Gpu(128, 2.52e9, 256, 128, 2, 128, 40, 0.95e12),
    90: Gpu(132, 1.75e9, 2048, 1024, 128, 128, 39, 3.0e12),
    100: Gpu(148, 1.85e9, 2048, 1024, 64, 128, 39, 7.0e12),
    120: Gpu(170, 2.41e9, 256, 128, 2, 128, 40, 1.7e12),
}

# Instructions that a thread runs for each feature inside the loop of matrix products, by contraction, implementation
# and form of the splines. The numbers are medians over the compiled kernels for cubic splines in bfloat16.
SLOTS = {
    ("F", "fused", "cardinal"): 9.6,
    ("F", "fused", "local"): 16.0,
    ("F", "pipelined", "cardinal"): 10.0,
    ("F", "pipelined", "local"): 32.0,
    ("G", "fused", "cardinal"): 20.0,
    ("G", "fused", "local"): 135.0,
    ("G", "pipelined", "cardinal"): 10.0,
    ("G", "pipelined", "local"): 32.0,
    ("H", "fused", "cardinal"): 11.5,
    ("H", "fused", "local"): 18.0,
    ("H", "pipelined", "cardinal"): 11.5,
    ("H", "pipelined", "local"): 18.0,
}
SPLIT = 11  # instructions for each factor of a matrix product that tf32x3 splits into two numbers
ENTRY = {"cardinal": 15, "local": 130}  # instructions for each element of x before its features are computed
# Maximum size of the partial sums of the base function, as a share of the size of the operands and results of G.
MAX_BASE_SHARE = 0.2
MIN_STEPS = 8  # minimum number of steps in a part of the rows of G
GATHERED = 54  # instructions of the gather kernels for each row, input and output
BANDED = 30  # instructions of the banded kernels for each input, eight rows and 32 outputs
GATHER_LATENCY = 3000  # clock cycles until the cell of an input is found by bisection and its weights have arrived


def gpu_of(capability: int) -> Gpu:
    """Return the rates of a GPU. A GPU that is not in the table gets the rates of the next lower compute capability."""
    return GPUS[max(c for c in GPUS if c <= max(capability, min(GPUS)))]


class Work(NamedTuple):
    """The work of one kernel launch. Clock cycles are counted for one program that runs alone on a multiprocessor."""

    programs: int
    resident: int  # number of programs that run on a multiprocessor at the same time
    tensor: float  # clock cycles in which the tensor cores are busy
    issue: float  # clock cycles in which instructions are issued
    l2: float  # clock cycles in which data arrive from the L2 cache
    idle: float  # clock cycles in which no part of the multiprocessor is busy
    overlapped: bool  # whether instructions are issued while the tensor cores are busy
    moved: float  # bytes read from and written to memory by all programs
    launches: int = 1  # number of successive launches of the kernel
    shared: float = 0.0  # clock cycles in which data arrive from shared memory
    short_programs: int = 0  # number of shorter programs, which start after all others
    short_share: float = 1.0  # time of a shorter program as a share of the time of a program

    def seconds(self, gpu: Gpu) -> float:
        """Return the predicted time of all launches."""
        loads_or_products = max(self.tensor, self.l2, self.shared)
        busiest = max(loads_or_products, self.issue)
        alone = (busiest if self.overlapped else loads_or_products + self.issue) + self.idle

        def span(together: int) -> float:
            return max(alone, together * busiest)

        slots = gpu.processors * self.resident
        waves, rest = divmod(self.programs, slots)
        clocks = waves * span(self.resident) + (span(math.ceil(rest / gpu.processors)) if rest else 0.0)
        # The multiprocessors that are free in the last wave run shorter programs one after the other.
        early = (slots - rest) * max(1, int(1 / self.short_share)) if rest else 0
        late = max(0, self.short_programs - early)
        clocks += math.ceil(late / slots) * self.short_share * span(self.resident)
        return self.launches * (max(clocks / gpu.hertz, self.moved / gpu.memory) + LAUNCH)

    def limiter(self, gpu: Gpu) -> str:
        """Return as text the part of the GPU that is busy for the largest share of the time, with its share."""
        clocks = math.ceil(self.programs / gpu.processors)
        busy = {
            "tensor cores": clocks * self.tensor / gpu.hertz,
            "instruction issue": clocks * self.issue / gpu.hertz,
            "L2 cache": clocks * self.l2 / gpu.hertz,
            "shared memory": clocks * self.shared / gpu.hertz,
            "memory": self.moved / gpu.memory,
            "launch": LAUNCH,
        }
        name = max(busy, key=lambda unit: busy[unit])
        return f"{name} {self.launches * busy[name] / self.seconds(gpu):.0%}"


def works(k: Key, config: Config, gpu: Gpu) -> list[Work]:
    """Return the work of all kernel launches of a contraction."""
    return _WORKS[config.way](k, config, gpu)


def seconds(k: Key, config: Config, capability: int) -> float:
    """Return the predicted time of a contraction in seconds.

    Args:
        k: properties of the contraction. The number of rows is not rounded.
        config: implementation and tile sizes.
        capability: compute capability of the GPU.
    """
    gpu = gpu_of(capability)
    return sum(work.seconds(gpu) for work in works(k, config, gpu))


def extra_bytes(k: Key, config: Config, gpu: Gpu) -> int:
    """Return the bytes of memory that a contraction uses in addition to its operands and results."""
    size, features = _size(k.dtype), k.inputs * (k.spline_count + (k.base != "none"))
    if config.way == "chunked":
        sums = 4 * features * k.outputs if k.contraction == "G" else 4 * k.rows * k.outputs
        return size * min(k.rows, chunk_rows(k.spline_count * k.inputs * size)) * features + sums
    if k.contraction != "G":
        return 0
    count, base_count = parts(k, config, gpu)
    splines, base = k.spline_count * (count > 1) * count, (k.base != "none") * (base_count > 1) * base_count
    return 4 * k.inputs * k.outputs * (splines + base)


def product(rows: int, inner: int, columns: int, dtype: str, precision: str, gpu: Gpu) -> Work:
    """Return the work of a plain matrix product ``[rows, inner] @ [inner, columns]`` of PyTorch."""
    rate = _rate(dtype, precision, gpu)
    if dtype == "float32" and precision != "tf32":
        rate = gpu.single  # PyTorch's products in full float32 do not use tensor cores
    clocks = rows * inner * columns / (rate * gpu.processors)
    moved = _size(dtype) * (rows * inner + inner * columns + rows * columns)
    return Work(gpu.processors, 1, clocks, 0.0, 0.0, 0.0, True, moved)


def _size(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def _rate(dtype: str, precision: str, gpu: Gpu) -> float:
    """Return the number of multiply-adds per clock cycle and multiprocessor in the kernels' matrix products."""
    if dtype == "float64":
        return gpu.double
    if dtype == "float32":
        return TENSOR_SHARE * gpu.tf32 / (1 if precision == "tf32" else 3)
    return TENSOR_SHARE * gpu.half


def _resident(k: Key, c: Config, sums: int) -> int:
    """Return how many programs fit on a multiprocessor at the same time, given its registers and shared memory."""
    threads = 32 * c.warps
    registers = min(255, 64 + sums * (2 if k.dtype == "float64" else 1) // threads)
    shared = c.stages * c.inner * (c.rows + c.columns * c.splines) * _size(k.dtype)
    return max(1, min(65536 // (threads * registers), (220 << 10) // shared, 2048 // threads))


def _form(k: Key) -> str:
    """Return the form of the splines; for derivatives above the spline order, return the cheaper form."""
    return "cardinal" if k.form == "none" else k.form


def _split(k: Key) -> int:
    """Return the number of tf32 products that replace one product of the given dtype and precision."""
    return 3 if k.dtype == "float32" and k.precision != "tf32" else 1


def part_rows(k: Key, c: Config, gpu: Gpu) -> tuple[int, int]:
    """Return a tuple of the numbers of rows in a part of the sums of G, for the splines and for the base function."""
    steps = math.ceil(k.rows / c.inner)
    part, base_part = (math.ceil(steps / count) * c.inner for count in parts(k, c, gpu))
    return part, base_part


@functools.lru_cache
def parts(k: Key, c: Config, gpu: Gpu) -> tuple[int, int]:
    """Return the numbers of parts into which the rows are split so that the predicted time of G is shortest.

    The kernel computes a result for each part, and the results are summed afterwards. The first number is for the
    splines, and the second number is for the base function. The numbers for the splines and for the base function
    differ only in the pipelined implementation.
    """
    most = max(1, math.ceil(k.rows / c.inner) // MIN_STEPS)
    tiles, base_tiles = _tiles(k, c)
    slots = gpu.processors * _resident(k, c, c.rows * c.columns)

    def filling(tiles: int) -> set[int]:
        """Return the numbers of parts that fill up to four waves of programs."""
        return {1, *(min(most, max(1, waves * slots // max(1, tiles))) for waves in range(1, 5))}

    if c.way == "pipelined":
        weights = k.inputs * k.outputs
        held = _size(k.dtype) * (weights * (k.spline_count + 1) + k.rows * (k.inputs + k.outputs))
        most_base = max(1, int(MAX_BASE_SHARE * held / (4 * weights)))
        pairs = [(n, m) for n, m in itertools.product(filling(tiles), filling(base_tiles)) if m <= max(n, most_base)]
    else:
        pairs = [(count, count) for count in filling(tiles + base_tiles)]

    def time(pair: tuple[int, int]) -> float:
        works = _weight_works(k, c, gpu, pair)
        return sum(work.seconds(gpu) for work in works) + UNCERTAIN * (len(works) > 1)

    return min(sorted(pairs), key=time)


def _tiles(k: Key, c: Config) -> tuple[int, int]:
    """Return a tuple of the numbers of tiles in the results of G, for the splines and for the base function."""
    base = math.ceil(k.inputs / c.rows) * math.ceil(k.outputs / c.columns)
    splines = k.spline_count * base
    if c.way == "pipelined":
        splines = _words(k) * math.ceil(WORD * k.inputs / c.rows) * math.ceil(k.outputs / c.columns)
    return splines, base if k.base != "none" else 0


def _words(k: Key) -> int:
    """Return the number of words of features that the pipelined implementation makes for each input."""
    return math.ceil(k.spline_count / WORD)


def _weight_works(k: Key, c: Config, gpu: Gpu, parts: tuple[int, int]) -> list[Work]:
    """Return the work of G, which computes features in a loop of matrix products over the rows of each part."""
    (tiles, base_tiles), (count, base_count) = _tiles(k, c), parts
    steps = math.ceil(k.rows / c.inner)
    long, short = math.ceil(steps / count), math.ceil(steps / base_count)
    loads = c.columns + (c.rows // WORD if c.way == "pipelined" else c.rows)
    work = _loop(k, c, gpu, tiles * count, long, 0, loads)
    work = work._replace(short_programs=base_tiles * base_count, short_share=short / long)
    tile = 8 * c.rows * c.columns  # bytes of the partial sums of a tile, each of which is written once and read once
    partial = tile * (tiles * count * (count > 1) + base_tiles * base_count * (base_count > 1))
    sums = (count > 1) + (base_count > 1 and base_tiles > 0)
    if sums == 0:
        return [work]
    return [work, Work(gpu.processors, 1, 0.0, 0.0, 0.0, 0.0, True, partial / sums, launches=sums)]


def _out_works(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    """Return the work of F, which computes features in a loop of matrix products over splines and inputs."""
    based, blocks = k.base != "none", math.ceil(k.inputs / c.inner)
    programs = math.ceil(k.rows / c.rows) * math.ceil(k.outputs / c.columns)
    if c.way == "pipelined":
        steps, entries = math.ceil(WORD * k.inputs / c.inner) * _words(k) + based * blocks, 0
    else:
        steps, entries = blocks * (k.spline_count + based), blocks
    return [_loop(k, c, gpu, programs, steps, entries, c.columns)]


def _loop(k: Key, c: Config, gpu: Gpu, programs: int, steps: int, entries: int, fetched: int) -> Work:
    """Return the work of a kernel that computes the features of each matrix product in registers.

    Args:
        programs: number of programs.
        steps: number of steps of each program.
        entries: number of steps that load a new block of x.
        fetched: number of columns of length ``inner`` that a step loads from the L2 cache.
    """
    size, features = _size(k.dtype), c.rows * c.inner
    made = features * max(1.0, 16 * c.warps / c.rows)  # warps that multiply the same rows compute the same features
    issued = steps * made * SLOTS[k.contraction, c.way, _form(k)] + entries * features * ENTRY[_form(k)]
    if _split(k) > 1:
        issued += steps * (made + c.inner * c.columns) * SPLIT
    return Work(
        programs,
        _resident(k, c, c.rows * c.columns),
        steps * features * c.columns / _rate(k.dtype, k.precision, gpu),
        issued / 32 / gpu.issue,
        (steps * c.inner * fetched + entries * features) * size / gpu.l2,
        (steps * _split(k) + 3 * entries) * BUBBLE[c.way],
        c.way == "pipelined",
        size * (k.rows * (k.inputs + k.outputs) + k.inputs * k.outputs * (k.spline_count + (k.base != "none"))),
    )


def _in_works(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    """Return the work of H, which multiplies each finished matrix product by the features."""
    based, size = k.base != "none", _size(k.dtype)
    blocks, steps = math.ceil(k.spline_count / c.splines), math.ceil(k.outputs / c.inner)
    columns = c.columns * c.splines
    products = c.inner * steps * c.rows * (blocks * columns + based * c.columns)
    features = blocks * c.rows * columns
    fetched = c.inner * steps * (blocks * (c.rows + columns) + based * (c.rows + c.columns))
    issued = features * SLOTS["H", c.way, _form(k)] + c.rows * c.columns * ENTRY[_form(k)]
    if _split(k) > 1:
        issued += fetched * SPLIT
    work = Work(
        math.ceil(k.rows / c.rows) * math.ceil(k.inputs / c.columns),
        _resident(k, c, c.rows * columns),
        products / _rate(k.dtype, k.precision, gpu),
        issued / 32 / gpu.issue,
        fetched * size / gpu.l2,
        (blocks + based) * 2 * _split(k) * BUBBLE[c.way],
        False,  # the features are computed after the products
        size * (k.rows * (2 * k.inputs + k.outputs) + k.inputs * k.outputs * (k.spline_count + based)),
    )
    return [work]


def _gathered(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    """Return the work of F or H, which read only the weights of the active splines."""
    programs = math.ceil(k.rows / c.rows) * (math.ceil(k.outputs / c.columns) if k.contraction == "F" else k.inputs)
    issued = k.rows * k.inputs * max(k.outputs, 32) * GATHERED / 32 / gpu.issue / programs
    size, weights = _size(k.dtype), k.inputs * k.outputs * k.spline_count
    moved = size * (k.rows * (k.inputs + k.outputs) + weights)
    idle = GATHER_LATENCY * (k.inputs if k.contraction == "F" else 1 + math.ceil(k.outputs / c.columns))
    return [Work(programs, 4, 0.0, issued, 0.0, idle, True, moved)]


def _banded(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    """Return the work of F or H, which read the weights of the active splines from shared memory.

    For each input, eight rows and 32 outputs take four ldmatrix instructions of 512 bytes.
    """
    size, tile = _size(k.dtype), 32
    inner = tile if k.contraction == "F" else c.inner
    inputs = k.inputs if k.contraction == "F" else min(c.columns, k.inputs)
    programs = math.ceil(k.rows / c.rows) * math.ceil(k.outputs / inner) * math.ceil(k.inputs / inputs)
    reads = inputs * math.ceil(c.rows / 8) * math.ceil(inner / tile)
    located = k.rows * k.inputs * (size + 2 + (8 if k.contraction == "F" else 16) + 4 * (k.base != "none"))
    shape = (k.rows, k.inputs, k.outputs) if k.contraction == "F" else (k.rows, k.outputs, k.inputs)
    works = [
        Work(gpu.processors, 1, 0.0, 0.0, 0.0, 0.0, True, located),
        Work(
            programs, 1, 0.0, reads * BANDED / gpu.issue, k.spline_count * inputs * inner * size / gpu.l2, 0.0, True,
            located, shared=reads * 4 * 512 / gpu.shared,
        ),
    ]  # fmt: skip
    parts = math.ceil(k.outputs / inner) if k.contraction == "H" else 1
    if parts > 1:  # the results of all parts are written and summed
        works.append(Work(gpu.processors, 1, 0.0, 0.0, 0.0, 0.0, True, 8 * parts * k.rows * k.inputs))
    return works if k.base == "none" else [*works, product(*shape, k.dtype, k.precision, gpu)]


def _chunked(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    """Return the work of the chunked implementation, which writes features to memory for PyTorch's matrix products.

    A chunk is larger than the L2 cache. For H, matrix products in the working dtype are stored instead of features.
    """
    features, size = k.inputs * (k.spline_count + (k.base != "none")), _size(k.dtype)
    rows = min(k.rows, chunk_rows(k.spline_count * k.inputs * size))
    shapes = {"F": (rows, features, k.outputs), "G": (features, rows, k.outputs), "H": (rows, k.outputs, features)}
    stored = max(size, 4) if k.contraction == "H" else size
    slots = SLOTS["F", "fused", _form(k)] + 6  # the additional instructions convert and store the features
    issue = rows * features / gpu.processors * slots / 32 / gpu.issue
    written = Work(gpu.processors, 1, 0.0, issue, 0.0, 0.0, True, stored * rows * features)
    multiplied = product(*shapes[k.contraction], k.dtype, k.precision, gpu)
    multiplied = multiplied._replace(moved=multiplied.moved + (stored - size) * rows * features)
    # The product of each chunk is added to a sum in float32. The base function takes a separate product.
    added = 12 * features * k.outputs if k.contraction == "G" else 0
    summed = Work(gpu.processors, 1, 0.0, 0.0, 0.0, 0.0, True, added)
    steps = [written, multiplied, summed, summed._replace(moved=0)]
    return [work._replace(launches=math.ceil(k.rows / rows)) for work in steps]


def _fused(k: Key, c: Config, gpu: Gpu) -> list[Work]:
    if k.contraction == "G":
        return _weight_works(k, c, gpu, parts(k, c, gpu))
    return (_out_works if k.contraction == "F" else _in_works)(k, c, gpu)


_WORKS = {
    "fused": _fused,
    "pipelined": _fused,
    "chunked": _chunked,
    "gather": _gathered,
    "banded": _banded,
}
