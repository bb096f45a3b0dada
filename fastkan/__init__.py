"""fastkan: Kolmogorov-Arnold networks in PyTorch, as quick as the matrix product they are.

>>> from fastkan import KAN, KANLinear
>>> layer = KANLinear(64, 64)
>>> model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)
"""

from fastkan_kernels import autotune, backend

from . import functional, pykan
from .conversion import convert, convert_state_dict, to_efficient_kan_state_dict, to_pykan
from .datasets import create_dataset, create_dataset_from_data
from .explain import explain
from .layer import KANLinear
from .network import KAN
from .pykan import *  # noqa: F403
from .replace import replace_linear
from .symbolic.library import SYMBOLIC_LIB, add_symbolic
from .version import __version__

MultKAN = KAN  # as pykan calls it too

__all__ = [
    "KAN",
    "SYMBOLIC_LIB",
    "KANLinear",
    "MultKAN",
    "__version__",
    "add_symbolic",
    "autotune",
    "backend",
    "convert",
    "convert_state_dict",
    "create_dataset",
    "create_dataset_from_data",
    "explain",
    "functional",
    "replace_linear",
    "to_efficient_kan_state_dict",
    "to_pykan",
    *pykan.__all__,
]
