"""Triton kernels of the contractions, and functions that prepare the launches of the kernels."""
