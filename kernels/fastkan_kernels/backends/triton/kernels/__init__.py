"""Triton kernels of the contractions, and the functions that prepare their launches."""
