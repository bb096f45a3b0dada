"""The configuration of a contraction: the implementation that computes it, and the tile sizes.

This module does not import Triton.
"""

from __future__ import annotations

from typing import NamedTuple

from ...validation import check_int

# The contractions that each implementation can compute. In this package a "way" is the name of an implementation. The
# function rules.ways_of also takes the GPU and the dtype into account.
WAYS = {"fused": "FGH", "chunked": "FGH", "gather": "FH", "banded": "FH", "pipelined": "FGH"}


class Config(NamedTuple):
    """An implementation of a contraction and its tile sizes.

    ``way`` is the name of the implementation. ``rows`` and ``columns`` are the sizes of a tile of the result. ``inner``
    is the size of a tile along the dimension that is summed over, which the gather implementation does not use.
    ``splines`` is the number of splines that a tile of the contraction H computes at once.
    """

    way: str
    rows: int = 16
    columns: int = 16
    inner: int = 16
    splines: int = 1
    warps: int = 4
    stages: int = 3
    descriptors: bool = False


def check(contraction: str, config: Config) -> None:
    """Raise an exception unless a kernel for the contraction supports the configuration.

    Raises:
        ValueError: if the contraction is unknown, if the contraction has no implementation named ``config.way``, if
            a tile size is not a power of two, or if the implementation does not support the tile sizes.
        TypeError: if a tile size is not an integer, or ``descriptors`` is not a bool.
    """
    if contraction not in ("F", "G", "H"):
        raise ValueError(f"contraction must be 'F', 'G' or 'H', got {contraction!r}")
    if contraction not in WAYS.get(config.way, ""):
        raise ValueError(f"config.way must be an implementation of {contraction}, got {config.way!r}")
    for field in ("rows", "columns", "inner", "splines", "warps", "stages"):
        number = getattr(config, field)
        if isinstance(number, bool):
            raise TypeError(f"{field} must be an int, got {number}")
        check_int(field, number, least=1)
        if field != "stages" and number & (number - 1):
            raise ValueError(f"{field} must be a power of two, got {number}")
    if config.way == "pipelined":
        _check_pipelined(contraction, config)
    if config.way == "banded":
        _check_banded(config)
    if not isinstance(config.descriptors, bool):
        raise TypeError(f"descriptors must be a bool, got {config.descriptors!r}")


WORD = 8  # number of splines of an input whose features the pipelined kernels pack into a word of 128 bits


def _check_pipelined(contraction: str, config: Config) -> None:
    """Raise an exception unless the pipelined kernels support the tile sizes.

    A tile needs a multiple of four warps, 16 rows for each warp, at most 256 columns of a matrix product, and 64
    elements along the dimension that is summed over. A tile of the contraction H has ``splines`` columns for each
    input.
    """
    if config.warps % 4 or config.rows != 16 * config.warps:
        raise ValueError(f"rows must be 16 for each of 4 warps or more, got {config.rows} of {config.warps}")
    if contraction == "H" and config.splines != WORD:
        raise ValueError(f"splines must be {WORD}, got {config.splines}")
    most = 32 if contraction == "H" else 256
    if not 16 <= config.columns <= most:
        raise ValueError(f"columns must be from 16 to {most}, got {config.columns}")
    if config.inner != 64:
        raise ValueError(f"inner must be 64, got {config.inner}")


def _check_banded(config: Config) -> None:
    """Raise an exception unless the kernels of the banded implementation support the tile sizes."""
    if config.rows < 8 * config.warps:
        raise ValueError(f"rows must be at least 8 for each warp, got {config.rows} of {config.warps}")
    if config.inner % 32 or config.inner > 256:
        raise ValueError(f"inner must be 32, 64, 128 or 256, got {config.inner}")
    if config.stages < 2:
        raise ValueError(f"stages must be at least 2, got {config.stages}")


def shared_limit(capability: int) -> int:
    """Return the number of bytes of shared memory that a program may use on a GPU of the given compute capability."""
    if capability in (80, 87):
        return 163 << 10
    return (227 if 90 <= capability < 120 else 99) << 10


def power_of_two(number: int, least: int, most: int) -> int:
    """Return the smallest power of two that is at least ``number``, clamped to the range from ``least`` to ``most``."""
    return max(least, min(most, 1 << (max(1, number) - 1).bit_length()))


# Maximum size of the features of a chunk, unless MIN_ROWS rows are larger. In a chunk that stays in the L2 cache, a
# matrix product with 1024 outputs would have fewer tiles than a GPU has multiprocessors.
CHUNK_BYTES = 64 << 20
MIN_ROWS = 128  # minimum number of rows in a chunk; a matrix product of fewer rows is slow


def chunk_rows(row_bytes: int) -> int:
    """Return the number of rows in a chunk of the chunked implementation, given the bytes of the features of a row."""
    return max(MIN_ROWS, CHUNK_BYTES // max(1, row_bytes))
