"""Triton kernels of the contractions."""
