"""Tuning and timing of the Triton kernels on a GPU: ``python -m bench.gpu OUT``, which README.md explains.

What proves the kernels right is a set of tests: ``pytest -m gpu``.
"""
