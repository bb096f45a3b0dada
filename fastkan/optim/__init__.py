"""Optimizers for small models trained to high accuracy."""

from .broyden import SelfScaledBroyden

__all__ = ["SelfScaledBroyden"]
