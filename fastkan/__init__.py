"""fastkan: Kolmogorov-Arnold networks in PyTorch, as quick as the matrix product they are.

>>> from fastkan import KAN, KANLinear
>>> layer = KANLinear(64, 64)
>>> model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)
"""

from fastkan_kernels import autotune, backend

from . import functional
from .interop import pykan
from .interop.convert import convert, convert_state_dict, to_efficient_kan_state_dict, to_pykan
from .interop.pykan import *  # noqa: F403
from .interop.replace import replace_linear
from .kan import KAN
from .layers.explain import explain
from .layers.function_library import SYMBOLIC_LIB, add_symbolic
from .layers.linear import KANLinear
from .training.data import create_dataset, create_dataset_from_data
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
