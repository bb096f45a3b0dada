"""Speed, memory and error of KAN layers on this machine: ``python -m bench``."""

from __future__ import annotations

import os

# the profiler, which counts allocations, talks of its own affairs on stderr; read when torch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
