"""The Triton backend: hand-written kernels for F, G and H.

:mod:`.backend` has the functions of the table of backends, :mod:`.dispatch` runs the kernels, and :mod:`.tuning`
chooses which one, with which tiles.
"""
