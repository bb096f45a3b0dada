"""Implementations of the contractions F, G and H, with the same arguments."""
