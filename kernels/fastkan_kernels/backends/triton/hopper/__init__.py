"""Kernels for Hopper GPUs with waits written by hand, in Gluon: F and G, whose features are a product's left operand.

Triton's own pipeline ends each such product before it makes the next features, where it must not let it
overwrite what that product reads; see :func:`..tiles.settle`.
"""

from __future__ import annotations

import functools


@functools.cache
def gluon_available() -> bool:
    """Whether Triton has the parts of Gluon that the kernels of this package are written in; it is experimental
    there, and names change."""
    try:
        from . import contract_out, contract_weight  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True
