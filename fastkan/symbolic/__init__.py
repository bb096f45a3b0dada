"""Edges that are formulas: a library of functions, edges fixed to them, and the search for the right one."""

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
    "SYMBOLIC_LIB",
    "Candidate",
    "Edge",
    "Interval",
    "SymbolicEdges",
    "SymbolicFits",
    "SymbolicFunction",
    "add_symbolic",
    "fit_params",
    "lookup",
    "names_of",
    "rank",
    "remove_symbolic",
    "search",
]
