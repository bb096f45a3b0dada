"""Evaluation of B-splines and their derivatives by the definition, and by faster algorithms for special cases."""
