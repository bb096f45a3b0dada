"""The Triton backend: hand-written kernels for NVIDIA GPUs of compute capability 8.0 or newer.

The kernels compute the three contractions F, G and H of :mod:`fastkan_kernels.trilinear`. Each contraction has up to
four implementations. The backend chooses an implementation by shape, dtype, spline order and grid, and the function
``fastkan.explain`` reports the choice. The implementations have the following names:

- *fused*: a kernel computes the splines in registers and multiplies them by the other operand at once.
- *pipelined*: a fused kernel in Gluon, Triton's lower-level language, waits explicitly for each matrix product, so that
  splines are computed while the tensor cores multiply. The pipelined implementation computes F and G in two-byte dtypes
  on Hopper GPUs. The rules never choose the pipelined implementation, because it has not been measured yet, but tuning
  tries it.
- *chunked*: a kernel writes the features of some rows to memory, and an ordinary matrix product reads them.
- *gather*: a kernel uses only the k + 1 splines that are not zero, which is faster on large grids.

The implementation and its tile sizes come from the first of the following sources that has an entry for the
contraction. If PyTorch is set to deterministic algorithms, the rules alone are used.

1. The user's own table of measured choices, named by ``FASTKAN_TUNING=tuned.json``. The command
   ``python -m bench --gpu OUT --only tune`` writes such a table. The table must have been written for the same GPU with
   the same versions of Triton and ptxas.
2. The choices that were tuned on this machine by ``fastkan.autotune()`` or ``FASTKAN_AUTOTUNE=1``, and cached in
   ``~/.cache/fastkan`` or in the folder ``FASTKAN_CACHE``.
3. A table that is installed with the package, for this GPU or for another GPU of the same compute capability, and for
   this minor version of Triton. No such table has been measured yet.
4. The rules, which are derived by counting operations and bytes.

:mod:`.backend` has the entry points for the registry of backends, :mod:`.dispatch` runs the kernels, and
:mod:`.tuning` chooses the kernel and its tile sizes.
"""
