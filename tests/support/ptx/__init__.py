"""Interpreter of the PTX code that Triton generates."""
