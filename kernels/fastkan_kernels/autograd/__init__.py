"""Derivatives of the contractions for each of PyTorch's modes, and the choice of a route and a backend."""
