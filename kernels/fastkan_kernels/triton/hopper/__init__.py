"""Kernels for Hopper GPUs with waits written by hand, in Gluon: F and G, whose features are a product's left operand.

Triton's own pipeline ends each such product before it makes the next features, where it must not let it
overwrite what that product reads; see :func:`..tiles.settle`.
"""
