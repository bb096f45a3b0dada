"""Choice of tile sizes for the Triton kernels."""
