"""The Triton backend: hand-written kernels for NVIDIA GPUs of compute capability 8.0 or newer.

The kernels compute the three contractions F, G and H of :mod:`fastkan_kernels.trilinear`. Each contraction has up to
four implementations. The backend chooses an implementation by shape, dtype, spline order and grid, and the function
``fastkan.explain`` reports the choice. The implementations have the following names:

- *fused*: a kernel computes the splines in registers and multiplies them by the other operand at once.
- *pipelined*: a fused kernel in Gluon, Triton's lower-level language, waits explicitly for each matrix product, so that
  splines are computed while the tensor cores multiply. The pipelined implementation computes F and G in two-byte dtypes
  on Hopper GPUs. The rules never choose the pipelined implementation, because it has not been measured yet, but tuning
  tries it.
- *chunked*: a kernel writes the splines of some rows to memory, where they stay in the L2 cache, and an ordinary matrix
  product reads them.
- *gather*: a kernel uses only the k + 1 splines that are not zero, which is faster on large grids.

The function :func:`.selection.choose` takes the implementation and its tile sizes from the user's own table of measured
choices (``FASTKAN_TUNING=tuned.json``), from what ``fastkan.autotune()`` has tuned on this machine, from a table that
is installed with the package, or from :mod:`.rules`, which count operations and bytes.

:mod:`.backend` has the entry points for the registry of backends, and :mod:`.dispatch` runs the kernels.
"""
