"""Kernels of F and G for Hopper GPUs in Gluon, which compute the next features while a matrix product runs.

Gluon is the lower-level language of Triton, in which a kernel itself determines when it waits for an asynchronous
matrix product. In the ordinary Triton language, each product must end before the next features are computed, because
the features overwrite the registers that the product reads (see :func:`..kernels.tiles.await_product`).
"""
