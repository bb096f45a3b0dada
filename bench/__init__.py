"""Speed, memory and error of KAN layers on this machine: ``python -m bench``. It runs from a checkout."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("fastkan_kernels") is None:  # the checkout is not installed
    sys.path.insert(0, str(_ROOT / "kernels"))
sys.path.append(str(_ROOT / "tests" / "support"))  # for the float64 oracle

# silence the profiler, which counts allocations and writes its progress to stderr; read when torch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
