"""Tuning and timing of the Triton kernels on a GPU: ``python -m bench.gpu OUT``, which README.md explains.

The tests ``pytest -m gpu`` check that the results of the kernels are right.
"""
