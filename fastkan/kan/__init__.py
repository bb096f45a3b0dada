"""``KAN``: a network with the methods of the workflow."""

from .model import KAN

__all__ = ["KAN"]
