"""The Triton backend: hand-written kernels for NVIDIA GPUs of compute capability 8.0 or newer.

The kernels compute the three contractions F, G and H of :mod:`fastkan_kernels.trilinear`. Each contraction has several
implementations. The backend chooses an implementation by shape, dtype, spline order and grid, and the function
``fastkan.explain`` reports the choice. The implementations have the following names:

- *fused*: a kernel computes the splines in registers and multiplies them by the other operand at once.
- *pipelined*: a kernel in Gluon, Triton's lower-level language, writes the splines as words of 128 bits to shared
  memory and waits explicitly for each matrix product, so that splines are computed while the tensor cores multiply. The
  implementation supports two-byte dtypes on Hopper GPUs.
- *chunked*: a kernel writes the splines of some rows to memory, and an ordinary matrix product reads them.
- *gather*: a kernel uses only the k + 1 splines that are not zero, which is faster on large grids.
- *banded*: like *gather*, but tensor cores multiply the weights, which are read from shared memory. The implementation
  supports F and H in two-byte dtypes.

The function :func:`.selection.choose` takes the implementation and its tile sizes from the user's own table of measured
choices (``FASTKAN_TUNING=tuned.json``), from what ``fastkan.autotune()`` has tuned on this machine, from a table that
is installed with the package, or from :mod:`.rules`, which count operations and bytes.

:mod:`.backend` has the entry points for the registry of backends, and :mod:`.dispatch` runs the kernels.
"""
