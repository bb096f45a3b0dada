"""The Triton backend: hand-written kernels for F, G and H.

:mod:`.backend` is the way in; :mod:`.dispatch` takes one of the ways that :mod:`.tuning` chooses.
"""
