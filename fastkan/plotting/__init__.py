"""Plots of networks, of single edges, and of training histories."""

from .plot import plot, plot_edge, plot_history

__all__ = ["plot", "plot_edge", "plot_history"]
