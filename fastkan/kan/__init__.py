"""The class ``KAN``, a network with the methods of pykan's workflow."""

from .model import KAN

__all__ = ["KAN"]
