"""Interpreter of the PTX that Triton compiles."""
