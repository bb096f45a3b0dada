"""Kernels of F, G and H for Hopper GPUs in Gluon, which compute the next features while a matrix product runs.

Gluon is the lower-level language of Triton, in which a kernel itself determines when it waits for an asynchronous
matrix product. The features of F and G are made as words of 128 bits (see :mod:`.words`), and the matrix products read
them from shared memory.
"""

from __future__ import annotations

import functools


@functools.cache
def gluon_available() -> bool:
    """Return whether the installed version of Triton has the functions of Gluon that the Hopper kernels need.

    Gluon is experimental, and names in Gluon change between versions of Triton.
    """
    try:
        from . import contract_in, contract_out, contract_weight  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True
