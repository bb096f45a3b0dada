"""Kernels of F and G for Hopper GPUs in Gluon, which compute the next features while a matrix product runs.

Gluon is the lower-level language of Triton, in which a kernel itself determines when it waits for an asynchronous
matrix product. In the ordinary Triton language, each product must end before the next features are computed, because
the features overwrite the registers that the product reads (see :func:`..kernels.tiles.await_product`).
"""

from __future__ import annotations

import functools


@functools.cache
def gluon_available() -> bool:
    """Return whether the installed version of Triton has the functions of Gluon that the Hopper kernels need.

    Gluon is experimental, and names in Gluon change between versions of Triton.
    """
    try:
        from . import contract_out, contract_weight  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True
