"""Backends: three functions, F, G and H, on the same arguments."""
