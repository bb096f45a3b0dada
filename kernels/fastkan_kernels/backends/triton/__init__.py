"""The Triton backend: hand-written kernels for F, G and H on NVIDIA GPUs of compute capability 8.0 or newer.

Each contraction is computed in one of four ways, chosen by shape, dtype, order and grid (see ``fastkan.explain``):

- *fused*: splines are computed in registers and multiplied at once.
- *pipelined*: the same with explicit waits, in Gluon, for F and G in two-byte dtypes on Hopper GPUs, so that splines
  are computed while the tensor cores multiply. No rule chooses it before it has been measured; tuning tries it.
- *chunked*: the splines of some rows are written to memory that stays in the cache, for a plain matrix product.
- *gather*: only the k + 1 splines that are not zero are used, which pays for large grids.

The way and its tile sizes come from the first of these sources that has a choice, and from the rules alone wherever
PyTorch is set to deterministic algorithms:

1. Your table, ``FASTKAN_TUNING=tuned.json``, which ``python -m bench --gpu OUT --only tune`` has written on the same
   GPU and versions.
2. What was tuned here, with ``fastkan.autotune()`` or ``FASTKAN_AUTOTUNE=1``, and cached in ``~/.cache/fastkan`` or
   ``FASTKAN_CACHE``.
3. A shipped table for this GPU, or another one of its capability, and this minor version of Triton; none is measured
   yet.
4. The rules, which are derived by counting operations and bytes.

:mod:`.backend` has the functions of the table of backends, :mod:`.dispatch` runs the kernels, and :mod:`.tuning`
chooses which one, with which tiles.
"""
