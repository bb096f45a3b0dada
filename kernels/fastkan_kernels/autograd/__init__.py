"""Differentiation of the contractions in each of PyTorch's modes, and the choice of a backend for a call."""
