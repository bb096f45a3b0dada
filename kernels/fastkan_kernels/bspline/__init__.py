"""Evaluation of B-splines and their derivatives: by definition, and in faster forms for special cases."""
