"""Layers of KAN edges, and edges that are formulas."""
