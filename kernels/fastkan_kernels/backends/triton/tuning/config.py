"""A configuration: the way in which a contraction is computed, and its tile sizes. Does not import Triton."""

from __future__ import annotations

from typing import NamedTuple

from ....validation import check_int

# The contractions that each way supports; rules.ways_of says on which GPUs and for which dtypes.
WAYS = {"fused": "FGH", "chunked": "FGH", "gather": "FH", "pipelined": "FG"}


class Config(NamedTuple):
    """A way and its tile sizes. ``rows`` and ``columns`` are the tile of the result, and ``inner`` is the size that is
    summed over, which the gather way does not use. ``splines`` is the number of splines that a tile of H has at
    once."""

    way: str
    rows: int = 16
    columns: int = 16
    inner: int = 16
    splines: int = 1
    warps: int = 4
    stages: int = 3
    descriptors: bool = False


def check(contraction: str, config: Config) -> None:
    """Raise unless a kernel for the contraction can have this configuration.

    Raises:
        ValueError: for an unknown contraction, a way that it does not support, a tile size that is no power of two, or
            a tile that the way does not support.
        TypeError: for a tile size that is no integer.
    """
    if contraction not in ("F", "G", "H"):
        raise ValueError(f"contraction must be 'F', 'G' or 'H', got {contraction!r}")
    if contraction not in WAYS.get(config.way, ""):
        raise ValueError(f"config must have a way that {contraction} has, got {config.way!r}")
    for field in ("rows", "columns", "inner", "splines", "warps", "stages"):
        number = getattr(config, field)
        check_int(field, number, least=1)
        if field != "stages" and number & (number - 1):
            raise ValueError(f"{field} must be a power of two, got {number}")
    if config.way == "pipelined":
        _check_pipelined(config)
    if not isinstance(config.descriptors, bool):
        raise TypeError(f"descriptors must be a bool, got {config.descriptors!r}")


def _check_pipelined(config: Config) -> None:
    """Raise unless a Hopper product supports the tiles: groups of four warps with 16 rows each, at most 256 columns."""
    if config.warps % 4 or config.rows != 16 * config.warps:
        raise ValueError(f"rows must be 16 for each of 4 warps or more, got {config.rows} of {config.warps}")
    if not 8 <= config.columns <= 256:
        raise ValueError(f"columns must be from 8 to 256, got {config.columns}")
    if config.inner < 16:
        raise ValueError(f"inner must be at least 16, got {config.inner}")


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a program may use on a GPU of a compute capability."""
    if capability in (80, 87):
        return 163 << 10
    return (227 if 90 <= capability < 120 else 99) << 10
