"""Kernels of F, G and H for Hopper GPUs in Gluon, which compute the next features while a matrix product runs.

Gluon is the lower-level language of Triton, in which a kernel itself determines when it waits for an asynchronous
matrix product. The features of F and G are made as words of 128 bits (see :mod:`.words`), and the matrix products read
them from shared memory.
"""
