"""Rules that choose the configuration of a contraction where nothing was measured, and the candidates for tuning.

The rules choose the candidate with the lowest time that the cost model predicts (:mod:`.cost`). The candidates
have tiles with which the kernels compile without spilling registers, as ``python -m bench.codegen`` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from . import cost, hardware
from .config import WAYS, WORD, Config, power_of_two, shared_limit
from .hardware import gluon_available
from .key import Key

MAX_PIPELINED = 3  # highest order of splines that the pipelined implementation supports


def ways_of(k: Key, capability: int) -> list[str]:
    """Return the names of the implementations that can compute a contraction with the given key on a GPU.

    No other function excludes an implementation because of the compute capability, the dtype or the form in which the
    kernels compute the splines (``k.form``).
    """
    ways = [way for way, contractions in WAYS.items() if k.contraction in contractions]
    if "pipelined" in ways and not _can_be_pipelined(k, capability):
        ways.remove("pipelined")
    # in float64, each of the k + 1 active splines takes two registers, so that the kernel would spill registers
    if k.dtype == "float64" and k.form == "local":
        ways.remove("fused")
    if "banded" in ways and not _can_be_banded(k, capability):
        ways.remove("banded")
    return ways


def _can_be_banded(k: Key, capability: int) -> bool:
    """Return whether the banded implementation can compute a contraction with the given key.

    The kernels multiply four splines of each input in a two-byte dtype, and they address tensors by 32-bit offsets. Two
    slots of weights must fit into shared memory.
    """
    small = max(5 * max(k.rows, 512) * k.inputs, k.spline_count * k.inputs * k.outputs) < 2**31
    fits = k.spline_count >= 4 and 2 * _slot_bytes(k) <= shared_limit(capability)
    made = k.dtype in ("bfloat16", "float16") and k.order <= 3 and k.form != "none"
    # Triton's interpreter does not run kernels in Gluon.
    return made and k.aligned and small and fits and not hardware.INTERPRETED and gluon_available()


def _can_be_pipelined(k: Key, capability: int) -> bool:
    """Return whether the pipelined implementation can compute a contraction with the given key.

    The implementation needs a Hopper GPU, matrix products of 16-bit dtypes, and operands that hardware tensor
    descriptors can address. The k + 1 active splines must fit into 64 bits. In float16, d must be 0 for F, because
    for d > 0 the base function is divided by the d-th power of an inverse knot spacing, and the quotient may leave the
    range of float16.
    """
    fits = k.dtype == "bfloat16" or (k.dtype == "float16" and (k.derivative == 0 or k.contraction != "F"))
    described = k.aligned and (k.rows_aligned or k.contraction == "H")
    return 90 <= capability < 100 and fits and k.order <= MAX_PIPELINED and described and gluon_available()


def overlaps(config: Config) -> bool:
    """Return whether the kernels of a configuration must compute features while matrix products run.

    Static checks of the machine code report an error if such a kernel waits for each product before it computes
    features.
    """
    return config.way == "pipelined"


def default(k: Key, capability: int) -> Config:
    """Return the configuration with the lowest predicted time, which is used where nothing was measured.

    The first implementation in the list is preferred, unless another one is predicted to save more than
    ``cost.UNCERTAIN`` seconds.
    """
    first, *others = by_way(k, capability)
    best = min(others, key=lambda config: cost.seconds(k, config, capability), default=first)
    saved = cost.seconds(k, first, capability) - cost.seconds(k, best, capability)
    return best if saved > cost.UNCERTAIN else first


def by_way(k: Key, capability: int) -> list[Config]:
    """Return a configuration of each implementation that can compute a contraction with the given key.

    The tiles are the ones with the lowest predicted time. Only splines on uniform knots of order 3 or less have more
    than one candidate, because the kernels of other splines were not compiled with all tiles.
    """
    found = []
    for way in ways_of(k, capability):
        configs = [_RULES[way](k, capability)]
        if k.form == "cardinal" and k.order <= 3 and way in _MORE:
            configs += _MORE[way](k, capability)
        found.append(min(configs, key=lambda config: cost.seconds(k, config, capability)))
    return found


def candidates(k: Key, capability: int = 90) -> list[Config]:
    """Return the configurations that are worth timing.

    The list begins with the default configuration. After the default configuration, the list has the configuration of
    each implementation that the rules prefer, and then configurations with other tile sizes.
    """
    found = [default(k, capability), *by_way(k, capability)]
    for way in ways_of(k, capability):
        found.append(_RULES[way](k, capability))
        found += _MORE[way](k, capability) if way in _MORE else ()
    return list(dict.fromkeys(found))


def _more_fused(k: Key, capability: int) -> Iterator[Config]:
    base = _fused(k, capability)
    deep = power_of_two(_depth(k), 16, 64)
    for rows in (64, 128):
        for columns in (16, 32) if k.contraction == "H" else (64, 128, 256):
            for together in (64, 128, 256) if k.contraction == "H" else (columns,):
                for inner in (16,) if k.form == "local" and k.contraction != "H" else (32, 64):
                    for warps in (4, 8):
                        tiles = base._replace(rows=rows, columns=columns, inner=min(inner, deep), warps=warps)
                        tiles = tiles._replace(splines=together // columns)
                        if _is_needed(k, tiles) and _may_fit(k, tiles, capability):
                            yield tiles


def _is_needed(k: Key, c: Config) -> bool:
    """Return whether the tiles of a configuration are not much larger than the matrices."""
    wide, high = _width(k), k.inputs if k.contraction == "G" else k.rows
    splines = power_of_two(k.spline_count, 1, 1 << 20)
    return c.rows <= 2 * high and c.columns <= power_of_two(wide, 16, 1 << 40) and c.splines <= splines


def _may_fit(k: Key, c: Config, capability: int) -> bool:
    """Return whether the tiles of a configuration are expected to fit into shared memory and registers.

    The limits were found by compiling: most configurations above the limits spill registers, and hardly any
    configuration below the limits does.
    """
    if _operand_bytes(k, c) > shared_limit(capability):
        return False
    hopper = 90 <= capability < 120
    if k.dtype == "float64" and c.inner > 32:
        return False
    kind = {"float64": "float64", "float32": "tf32" if k.precision == "tf32" else "tf32x3"}.get(k.dtype, "half")
    # A float64 number takes two registers, so only half of the threads are counted.
    threads = 32 * c.warps // (2 if kind == "float64" else 1)
    sums, left = c.rows * c.columns * c.splines // threads, c.rows * c.inner // threads
    # If several warps compute the same rows, each of the warps holds a copy of the rows in registers.
    if 16 * c.warps > c.rows and (kind == "tf32x3" or not hopper):
        return False
    if (k.contraction, kind, hopper) == ("G", "half", False) and c.rows * c.inner < 64 * 64:
        return False
    # In addition to the sums, registers hold the tiles of x, of the cells of x and of the result.
    if k.contraction == "H":
        tile = c.rows * c.columns // threads
        room = (_ROOM if hopper else _OLDER_ROOM)[kind][1] - (0 if k.inputs_by_16 else 48)
        if hopper and not k.aligned:  # without tensor descriptors, registers hold the addresses of W and g
            room -= 32
        tiles = (3 if kind == "tf32x3" else 2) * tile
        return tile <= 16 and sums + tiles + c.inner <= room
    # In tf32x3, the kernel splits the right operand into parts in registers, as it also does with the left operand.
    right = c.inner * c.columns // threads if kind == "tf32x3" else 0
    most = 64 if (k.contraction, hopper) == ("G", True) and kind != "tf32x3" else 32
    # On older GPUs, registers also hold a tile of v, once as it is loaded and once in float32.
    v = 2 * left if k.multiplied and not hopper else 0
    return left <= most and sums + left + right + v <= (_ROOM if hopper else _OLDER_ROOM)[kind][0]


# Maximum number of values that a thread may hold in registers. The first number of each pair is for the contractions F
# and G, and the second number is for H.
_ROOM = {"half": (160, 224), "tf32": (160, 160), "tf32x3": (112, 120), "float64": (112, 112)}
_OLDER_ROOM = {"half": (144, 127), "tf32": (56, 80), "tf32x3": (48, 48), "float64": (48, 48)}


def _operand_bytes(k: Key, c: Config) -> int:
    """Return an upper bound of the bytes of shared memory that the operands of a fused matrix product take."""
    stages = c.stages + (k.precision == "tf32x3")
    return stages * c.inner * (c.rows + c.columns * c.splines) * getattr(torch, k.dtype).itemsize


def _depth(k: Key) -> int:
    return {"F": k.inputs, "G": k.rows, "H": k.outputs}[k.contraction]


def _width(k: Key) -> int:
    return k.inputs if k.contraction == "H" else k.outputs


def _fused(k: Key, capability: int) -> Config:
    """Return a configuration of the fused implementation that compiles without spilling registers.

    In the local form of splines, registers hold the k + 1 active splines for each input of a block. In tf32x3,
    registers hold the operands of three matrix products.
    """
    size = {"float64": 8, "float32": 4}.get(k.dtype, 2)
    wide = size > 4 or (size == 4 and k.precision != "tf32")
    # GPUs with a compute capability outside of this range have less than 227 KiB of shared memory.
    local, older = k.form == "local", not 90 <= capability < 120
    longest = 32 if size > 2 else 64
    stages, descriptors = 2 if older else 3, k.aligned and not older
    splines = 1
    steep = k.derivative > 0  # registers also hold a factor for each input and, in a double backward, v
    crowded = local and k.order > 4
    if k.contraction == "F":
        most = 16 if steep and older else 32  # the limit applies only if ``crowded`` and ``wide`` are both true
        rows = power_of_two(k.rows, 16, most if crowded and wide else 64 if wide or crowded else 128)
        least = wide or rows < 64 or (local and (older or size > 2)) or (older and steep) or crowded
        columns = power_of_two(
            k.outputs, 16, 32 if rows < 64 and steep else 64 if least else 128 if local or older else 256
        )
        if size > 2:
            columns = min(columns, 16 if crowded and wide and steep and older else 128)
        held = min(longest, 32) if steep or k.order > 3 else longest
        inner = power_of_two(k.inputs, 16, 16 if local or (steep and (wide or rows < 64)) else held)
        warps = 8 if rows >= 128 or (wide and older) or (crowded and not wide) else 4
    elif k.contraction == "G":
        rows = power_of_two(k.inputs, 16, 32 if wide and local else 64 if wide or local else 128)
        columns = power_of_two(k.outputs, 16, 32 if size > 4 and steep else 64 if wide or local else 128)
        held = min(longest, 32) if older and steep else longest
        inner = power_of_two(k.rows, 16, 16 if local or (size > 4 and steep) else held)
        if older and local and k.order > 3:
            rows = min(rows, 16)
        # On older GPUs, two warps that compute the same rows of a small tile would spill registers.
        few = older and rows < 128 and not local and size == 2
        warps = 8 if rows * max(columns, inner) >= 64 * 64 and not ((local and wide) or few) else 4
        if wide and not (local or k.aligned):  # registers hold the addresses of a third stage
            stages = 2
    else:
        most = 16 if size > 4 and older and steep and k.order > 4 else 32
        rows = power_of_two(k.rows, 16, most if size > 4 or (wide and older) else 64 if wide or local or older else 128)
        columns = power_of_two(k.inputs, 16, 16 if wide or local else 32)
        together = 32 if wide and older else 64 if wide or local or not descriptors or rows < 64 else 128
        if (size > 4 and older) or (steep and k.order > 4 and rows < 64):
            together = columns
        if wide and local and not k.aligned:  # registers hold the addresses of W
            together //= 2
        splines = min(power_of_two(k.spline_count, 1, 8), max(1, together // columns))
        inner = power_of_two(k.outputs, 16, 16 if wide and older else longest)
        # Without alignment, a few rows take fewer instructions in two warps than in four, and no register is spilled.
        few = wide and older and rows < 64 and not k.aligned
        warps = 8 if rows >= 128 or (older and rows >= 64) else 2 if few else 4
    return Config("fused", rows, columns, inner, splines, warps, stages, descriptors)


def _pipelined(k: Key, capability: int) -> Config:
    """Return a configuration of the pipelined implementation that compiles without spilling registers.

    Each warp computes 16 rows of a tile. ``stages`` is the maximum number of slots in shared memory.
    """
    if k.contraction == "H":
        columns = power_of_two(k.inputs, 16, 16 if k.form == "local" else 32)
        rows = power_of_two(k.rows, 64, 128)
    else:
        rows = power_of_two(k.spline_count * k.inputs if k.contraction == "G" else k.rows, 64, 128)
        # In wider tiles of 64 rows, ptxas would make each product of F wait for the previous product.
        columns = power_of_two(k.outputs, 16, 64 if k.contraction == "F" and rows == 64 else 256)
    return Config("pipelined", rows, columns, 64, WORD if k.contraction == "H" else 1, rows // 16, 4, True)


def _more_pipelined(k: Key, capability: int) -> Iterator[Config]:
    base = _pipelined(k, capability)
    for rows in (64, 128):
        for columns in (16, 32) if k.contraction == "H" else (64, 128, 256):
            serialised = k.contraction == "F" and rows == 64 and columns > 64
            if rows <= base.rows and columns <= base.columns and not serialised:
                yield base._replace(rows=rows, columns=columns, warps=rows // 16)


def chunking(k: Key, capability: int) -> Config:
    most = 16 if k.form == "cardinal" else 2 if k.dtype == "float64" else 8
    return Config("chunked", power_of_two(k.rows, 1, most), power_of_two(k.inputs, 16, 64), warps=4, stages=1)


def _gathering(k: Key, capability: int) -> Config:
    most = 8 if k.dtype == "float64" or k.order > 4 else 16
    columns = power_of_two(k.outputs, 16, 32 if k.dtype == "float64" and k.contraction == "H" else 128)
    return Config("gather", power_of_two(k.rows, 1, most), columns, warps=4, stages=2)


def _slot_bytes(k: Key) -> int:
    """Return the number of bytes of the weights of one input and 32 outputs, for a multiple of four splines."""
    return -(-k.spline_count // 4) * 256


def _banding(k: Key, capability: int) -> Config:
    """Return a configuration with about one program for each multiprocessor."""
    if k.contraction == "F":
        stages = 3 if 3 * _slot_bytes(k) <= shared_limit(capability) else 2
        rows = power_of_two(k.rows * -(-k.outputs // 32) // 128, 64, 512)
        return Config("banded", rows, 32, 32, warps=rows // 32, stages=stages)
    rows = power_of_two(k.rows * k.inputs // (64 * 128), 64, 256)
    inner = power_of_two(k.outputs, 32, 128)  # more outputs would spill registers
    programs = -(-k.rows // rows) * -(-k.outputs // inner)
    return Config("banded", rows, power_of_two(k.inputs * programs // 128, 1, 256), inner, 1, rows // 16, stages=2)


def _more_banded(k: Key, capability: int) -> Iterator[Config]:
    base = _banding(k, capability)
    if base.rows > 64:
        yield base._replace(rows=base.rows // 2, warps=base.warps // 2)


_RULES: dict[str, Callable[[Key, int], Config]] = {
    "fused": _fused,
    "chunked": chunking,
    "gather": _gathering,
    "banded": _banding,
    "pipelined": _pipelined,
}
# Functions that yield further candidates of an implementation, in addition to its default configuration.
_MORE: dict[str, Callable[[Key, int], Iterator[Config]]] = {
    "fused": _more_fused,
    "banded": _more_banded,
    "pipelined": _more_pipelined,
}
