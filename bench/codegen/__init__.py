"""What the Triton kernels compile to, proved without a GPU: ``python -m bench.codegen``."""
