"""Kernels of F and G for Hopper GPUs in Gluon, which compute the next features while a product runs.

Gluon is Triton's lower level, where a kernel says itself when it waits for an asynchronous product. Triton's compiler
ends each product before the next features overwrite the registers that it reads; see
:func:`..kernels.tiles.await_product`.
"""

from __future__ import annotations

import functools


@functools.cache
def gluon_available() -> bool:
    """Whether the installed Triton has the parts of Gluon that these kernels need. Gluon is experimental, and its names
    change between versions."""
    try:
        from . import contract_out, contract_weight  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True
