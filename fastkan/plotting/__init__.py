"""Pictures of networks, of edges and of fits."""

from .plot import plot, plot_edge, plot_history

__all__ = ["plot", "plot_edge", "plot_history"]
