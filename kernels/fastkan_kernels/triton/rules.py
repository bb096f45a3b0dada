"""Which way and tiles by rule, where nothing was measured; and which are worth measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .config import WAYS, Config, shared_limit
from .key import Key
from .launch import power_of_two

# from this many splines the k + 1 active ones are gathered: counted from floors, to be measured
GATHER_FROM = {"half": 192, "single": 32}
CHUNK_FROM = 512  # outputs, above which a plain product of features in memory is expected to win


def ways_of(k: Key, capability: int) -> list[str]:
    """The ways that there are for a key on a GPU: a way that is made for some capabilities, dtypes or forms only
    is left out here, and nowhere else."""
    return [way for way, contractions in WAYS.items() if k.contraction in contractions]


def default(k: Key, capability: int) -> Config:
    """By rules, where nothing was measured."""
    half = k.dtype in ("bfloat16", "float16")
    gathers = k.spline_count >= GATHER_FROM["half" if half else "single"] and k.precision != "tf32"
    spills = k.dtype == "float64" and k.form == "local"  # k + 1 splines of two registers each
    if k.contraction != "G" and (gathers or spills):
        return _gathering(k, capability)
    if spills or (k.outputs > CHUNK_FROM and k.dtype != "float64"):
        return _chunking(k, capability)
    return _fused(k, capability)


def by_way(k: Key, capability: int) -> list[Config]:
    """The rules' configuration of each way that there is."""
    return [_RULES[way](k, capability) for way in ways_of(k, capability)]


def candidates(k: Key, capability: int = 90) -> list[Config]:
    """What is worth timing, the rules' own choice first, then that of each way, then other tiles."""
    found = [default(k, capability), *by_way(k, capability)]
    for way in ways_of(k, capability):
        found += _MORE[way](k, capability) if way in _MORE else ()
    return list(dict.fromkeys(found))


def _more_fused(k: Key, capability: int) -> Iterator[Config]:
    base = _fused(k, capability)
    widest = 2 * power_of_two(_width(k), 16, 256)
    for rows in (64, 128):
        for columns in (16, 32) if k.contraction == "H" else (64, 128, 256):
            for together in (64, 128, 256) if k.contraction == "H" else (columns,):
                for inner in (32, 64):
                    for warps in (4, 8):
                        tiles = base._replace(rows=rows, columns=columns, inner=inner, warps=warps)
                        tiles = tiles._replace(splines=together // columns)
                        small = rows * together <= 128 * 32 * warps and columns <= widest and rows <= 2 * k.rows
                        if small and _operand_bytes(k, tiles) <= shared_limit(capability):
                            yield tiles


def _operand_bytes(k: Key, config: Config) -> int:
    """What a fused product's operands take of shared memory, at most."""
    wide = config.columns * config.splines
    return config.stages * config.inner * (config.rows + wide) * getattr(torch, k.dtype).itemsize


def _width(k: Key) -> int:
    return k.inputs if k.contraction == "H" else k.outputs


def _fused(k: Key, capability: int) -> Config:
    """Tiles that compile without a spill (``python -m bench.codegen``): the local form holds k + 1 splines of
    each input of a block, tf32x3 three products' operands."""
    size = {"float64": 8, "float32": 4}.get(k.dtype, 2)
    wide = size > 4 or (size == 4 and k.precision != "tf32")
    local, older = k.form == "local", not 90 <= capability < 120  # of these only data centre chips share 227 KiB
    longest = 32 if size > 2 else 64
    stages, descriptors = 2 if older else 3, k.aligned and not older
    splines = 1
    steep = k.derivative > 0  # a factor for each input, and v where this is a double backward's
    crowded = local and k.order > 4
    if k.contraction == "F":
        most = 16 if steep and older else 32  # where crowded and wide
        rows = power_of_two(k.rows, 16, most if crowded and wide else 64 if wide or crowded else 128)
        least = wide or rows < 64 or (local and (older or size > 2)) or (older and steep) or crowded
        columns = power_of_two(
            k.outputs, 16, 32 if rows < 64 and steep else 64 if least else 128 if local or older else 256
        )
        if size > 2:
            columns = min(columns, 16 if crowded and wide and steep and older else 128)
        held = min(longest, 32) if steep or k.order > 4 else longest
        inner = power_of_two(k.inputs, 16, 16 if local or (steep and (wide or rows < 64)) else held)
        warps = 8 if rows >= 128 or (wide and older) or (crowded and not wide) else 4
    elif k.contraction == "G":
        rows = power_of_two(k.inputs, 16, 32 if wide and local else 64 if wide or local else 128)
        columns = power_of_two(k.outputs, 16, 32 if size > 4 and steep else 64 if wide or local else 128)
        inner = power_of_two(k.rows, 16, 16 if local or (size > 4 and steep) else longest)
        if older and local and k.order > 3:
            rows = min(rows, 16)
        warps = 8 if rows * max(columns, inner) >= 64 * 64 and not (local and wide) else 4
    else:
        rows = power_of_two(k.rows, 16, 32 if size > 4 or (wide and older) else 64 if wide or local or older else 128)
        columns = power_of_two(k.inputs, 16, 16 if wide or local else 32)
        together = 32 if wide and older else 64 if wide or local or not descriptors or rows < 64 else 128
        if (size > 4 and older) or (steep and k.order > 4 and rows < 64):
            together = columns
        splines = min(power_of_two(k.spline_count, 1, 8), max(1, together // columns))
        inner = power_of_two(k.outputs, 16, 16 if wide and older else longest)
        warps = 8 if rows >= 128 or (older and rows >= 64) else 4
    return Config("fused", rows, columns, inner, splines, warps, stages, descriptors)


def _chunking(k: Key, capability: int) -> Config:
    most = 16 if k.form == "cardinal" else 2 if k.dtype == "float64" else 8
    return Config("chunked", power_of_two(k.rows, 1, most), power_of_two(k.inputs, 16, 64), warps=4, stages=1)


def _gathering(k: Key, capability: int) -> Config:
    most = 8 if k.dtype == "float64" or k.order > 4 else 16
    return Config("gather", power_of_two(k.rows, 1, most), power_of_two(k.outputs, 16, 128), warps=4, stages=2)


_RULES: dict[str, Callable[[Key, int], Config]] = {"fused": _fused, "chunked": _chunking, "gather": _gathering}
_MORE: dict[str, Callable[[Key, int], Iterator[Config]]] = {"fused": _more_fused}  # tiles beside the rules'
