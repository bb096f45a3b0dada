"""Static checks of the machine code of the Triton kernels, without a GPU: ``python -m bench.codegen``."""
