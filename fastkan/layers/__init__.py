"""The layers ``KANLinear`` (splines) and ``SymbolicEdges`` (formulas), and functions that evaluate them."""
