"""Layers side by side on this machine: the cases, what is timed, the contenders, and how far each is from float64."""

from . import baselines as baselines  # enters the contenders of this package
