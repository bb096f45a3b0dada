"""Speed, memory and error of KAN layers on this machine: ``python -m bench``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("fastkan_kernels") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))

# the profiler, which counts allocations, talks of its own affairs on stderr; read when torch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
