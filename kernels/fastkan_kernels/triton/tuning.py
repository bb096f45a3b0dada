"""Which way a contraction takes and in what tiles: rules, and tables of measured choices in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ..checks import check_int
from . import hardware
from .launch import describable, power_of_two
from .problem import Problem

WAYS = ("fused", "chunked", "gather")
EXACT_BELOW = 256  # sizes up to here are told apart, above only their powers of two
# from this many splines the k + 1 active ones are gathered: counted from floors, to be measured
GATHER_FROM = {"half": 192, "single": 32}
MOST_SHARED = 227 << 10  # bytes, of a program on a Hopper GPU
CHUNK_FROM = 512  # outputs, above which a plain product of features in memory is expected to win


class Key(NamedTuple):
    """What a choice depends on; never the number of rows itself."""

    contraction: str  # "F", "G" or "H"
    dtype: str  # of the product
    precision: str  # of float32 products
    form: str
    order: int
    derivative: int
    base: str
    aligned: bool  # whether descriptors can address the operands
    rows: int  # bucketed, as are the next two
    inputs: int
    outputs: int
    spline_count: int


class Config(NamedTuple):
    """A way and its tiles. ``rows`` and ``columns`` are those of the result, ``inner`` is summed over;
    ``splines``, of H alone, are taken at once; for the gather way ``inner`` means nothing."""

    way: str
    rows: int = 16
    columns: int = 16
    inner: int = 16
    splines: int = 1
    warps: int = 4
    stages: int = 3
    descriptors: bool = False


def key(p: Problem) -> Key:
    """What the choice for a problem depends on."""
    aligned = all(describable(t) for t in (p.weight, p.base_weight, p.g) if t is not None)
    dtype = str(p.product).removeprefix("torch.")
    return Key(
        p.name, dtype, p.precision, p.form, p.basis.order, p.derivative, p.base, aligned,
        power_of_two(p.rows, 1, 1 << 40), _bucket(p.inputs), _bucket(p.outputs), p.spline_count,
    )  # fmt: skip


def _bucket(size: int) -> int:
    return size if size <= EXACT_BELOW else power_of_two(size, 1, 1 << 40)


def choose(k: Key, capability: int) -> Config:
    """The configuration: what is forced, else what was measured, else the rules'.

    Where PyTorch's deterministic algorithms are asked for, no table changes the order of a sum.
    """
    measured = None if torch.are_deterministic_algorithms_enabled() else _table().get(k)
    return _forced.get(k.contraction) or measured or default(k, capability)


def default(k: Key, capability: int) -> Config:
    """By rules, where nothing was measured."""
    half = k.dtype in ("bfloat16", "float16")
    gathers = k.spline_count >= GATHER_FROM["half" if half else "single"] and k.precision != "tf32"
    spills = k.dtype == "float64" and k.form == "local"  # k + 1 splines of two registers each
    if k.contraction != "G" and (gathers or spills):
        return _gathering(k)
    if spills or (k.outputs > CHUNK_FROM and k.dtype != "float64"):
        return _chunking(k)
    return _fused(k, capability)


def by_way(k: Key, capability: int) -> list[Config]:
    """The rules' configuration of each way that there is."""
    ways = [_fused(k, capability), _chunking(k)]
    return ways if k.contraction == "G" else [*ways, _gathering(k)]


def candidates(k: Key, capability: int = 90) -> list[Config]:
    """What is worth timing, the rules' own choice first."""
    base = _fused(k, capability)
    widest = 2 * power_of_two(_width(k), 16, 256)
    found = [default(k, capability), *by_way(k, capability)]
    for rows in (64, 128):
        for columns in (16, 32) if k.contraction == "H" else (64, 128, 256):
            for together in (64, 128, 256) if k.contraction == "H" else (columns,):
                for inner in (32, 64):
                    for warps in (4, 8):
                        if rows * together <= 128 * 32 * warps and columns <= widest and rows <= 2 * k.rows:
                            tiles = base._replace(rows=rows, columns=columns, inner=inner, warps=warps)
                            found.append(tiles._replace(splines=together // columns))
    return [config for config in dict.fromkeys(found) if _operand_bytes(k, config) <= MOST_SHARED]


def _operand_bytes(k: Key, config: Config) -> int:
    """What a fused product's operands take of shared memory, at most."""
    if config.way != "fused":
        return 0
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


def _chunking(k: Key) -> Config:
    most = 16 if k.form == "cardinal" else 2 if k.dtype == "float64" else 8
    return Config("chunked", power_of_two(k.rows, 1, most), power_of_two(k.inputs, 16, 64), warps=4, stages=1)


def _gathering(k: Key) -> Config:
    most = 8 if k.dtype == "float64" or k.order > 4 else 16
    return Config("gather", power_of_two(k.rows, 1, most), power_of_two(k.outputs, 16, 128), warps=4, stages=2)


# -- forced choices and tables -----------------------------------------------------------------------

_forced: dict[str, Config] = {}  # of the process: a backward on a GPU runs in a thread of its own
_loaded: dict[str, dict[Key, Config]] = {}


@contextmanager
def override(contraction: str, config: Config) -> Iterator[None]:
    """Take one configuration for a contraction whatever the sizes, in this process: for tuning and tests.

    Raises:
        ValueError: for what is no contraction or no way.
    """
    _check(contraction, config)
    global _forced
    before = _forced
    _forced = {**before, contraction: config}
    try:
        yield
    finally:
        _forced = before


def _check(contraction: str, config: Config) -> None:
    """Raises a ValueError or TypeError for what no kernel could run."""
    if contraction not in ("F", "G", "H"):
        raise ValueError(f"contraction must be 'F', 'G' or 'H', got {contraction!r}")
    if config.way not in WAYS or (config.way == "gather" and contraction == "G"):
        raise ValueError(f"config must have a way that {contraction} has, got {config.way!r}")
    for field in ("rows", "columns", "inner", "splines", "warps", "stages"):
        number = getattr(config, field)
        check_int(field, number, least=1)
        if field != "stages" and number & (number - 1):
            raise ValueError(f"{field} must be a power of two, got {number}")


def about() -> dict[str, str]:
    """The machine and versions that a measured choice holds for."""
    import triton

    found = {"triton": triton.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["capability"] = str(hardware.capability(torch.device("cuda")))
    return found


def write_table(path: str | Path, entries: Mapping[Key, Config], about: Mapping[str, str]) -> None:
    """Write measured choices as JSON."""
    rows = [{"key": k._asdict(), "config": c._asdict()} for k, c in entries.items()]
    Path(path).write_text(json.dumps({"schema": 1, "about": dict(about), "entries": rows}, indent=1) + "\n")


def read_table(path: str | Path) -> tuple[dict[Key, Config], dict[str, str]]:
    """Entries of a table, and what machine they hold for.

    Raises:
        ValueError: if the file is not such a table.
    """
    try:
        data = json.loads(Path(path).read_text())
        entries = {Key(**row["key"]): Config(**row["config"]) for row in data["entries"]}
        for k, config in entries.items():
            _check(k.contraction, config)
        return entries, data["about"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a table of tuned choices: {error!r}") from error


def use_table(path: str | Path | None) -> None:
    """Take the choices of a table from now on, in this process; None forgets it.

    The environment variable FASTKAN_TUNING names one to begin with.

    Raises:
        ValueError: if it is not such a table, or was made on another GPU or Triton.
    """
    if path is None:
        _loaded["table"] = {}
        return
    entries, made_on = read_table(path)
    here = about()
    for name in ("gpu", "capability", "triton"):
        if made_on.get(name) != here.get(name):
            raise ValueError(f"{path} holds for {name} {made_on.get(name)!r}, and here it is {here.get(name)!r}")
    _loaded["table"] = entries


def _table() -> dict[Key, Config]:
    if "table" not in _loaded:
        use_table(hardware.table_from_environment())
    return _loaded["table"]
