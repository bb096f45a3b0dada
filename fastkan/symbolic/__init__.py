"""Symbolic edges ``c f(a x + b) + d``: the library of functions f, the module of such edges, and their fits to samples.

- library: ``SYMBOLIC_LIB``, ``add_symbolic``, ``remove_symbolic``, ``lookup``, ``names_of``; its entries are
  ``SymbolicFunction``, with an ``Interval`` as domain
- edges: ``SymbolicEdges``, a module that holds the ``Edge`` entries of one layer
- fits: ``search`` fits many functions to many edges, ``rank`` orders its ``SymbolicFits`` as ``Candidate`` entries, and
  ``fit_params`` fits one function to one edge

A network's edges are made symbolic, and its formulas read, by methods of :class:`fastkan.KAN`.
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
