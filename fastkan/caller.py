"""Warnings that point at the line of the caller outside of these packages, whatever decorators are on the way."""

from __future__ import annotations

import sys
import warnings

PACKAGES = ("fastkan", "fastkan_kernels", "torch")  # torch has decorators too, and calls modules


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into these packages."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
