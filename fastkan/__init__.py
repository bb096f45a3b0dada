"""fastkan: Kolmogorov-Arnold networks in PyTorch, as quick as the matrix product they are.

>>> from fastkan import KANLinear
>>> layer = KANLinear(64, 64)
"""

from fastkan_kernels import backend

from . import functional
from .explain import explain
from .layer import KANLinear
from .version import __version__

__all__ = ["KANLinear", "__version__", "backend", "explain", "functional"]
