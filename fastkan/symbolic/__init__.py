"""Symbolic edges ``c f(a x + b) + d``: the library of functions f, the module of such edges, and their fits to samples.

- library: ``SYMBOLIC_LIB`` maps names to ``SymbolicFunction`` entries, each with an ``Interval`` as its domain.
  ``add_symbolic``, ``remove_symbolic``, ``lookup`` and ``names_of`` change and read the library.
- edges: ``SymbolicEdges`` is a module that holds the ``Edge`` entries of one layer.
- fits: ``search`` fits many functions to many edges and returns ``SymbolicFits``, ``rank`` turns ``SymbolicFits`` into
  a sorted list of ``Candidate`` entries, and ``fit_params`` fits one function to one edge.

The methods of :class:`fastkan.KAN` make the edges of a network symbolic and return the formulas of the network.
"""

from ..layers.function_library import (
    SYMBOLIC_LIB,
    Interval,
    SymbolicFunction,
    add_symbolic,
    lookup,
    names_of,
    remove_symbolic,
)
from ..layers.symbolic import Edge, SymbolicEdges
from .search import Candidate, SymbolicFits, fit_params, rank, search

__all__ = [
    "SYMBOLIC_LIB", "Candidate", "Edge", "Interval", "SymbolicEdges", "SymbolicFits", "SymbolicFunction",
    "add_symbolic", "fit_params", "lookup", "names_of", "rank", "remove_symbolic", "search",
]  # fmt: skip
