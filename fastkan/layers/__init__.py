"""One layer of edges: ``KANLinear`` for splines, ``SymbolicEdges`` for formulas, and functions that evaluate them."""
