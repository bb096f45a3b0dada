"""The banded implementation of the contractions F and H, for large grids and two-byte dtypes.

A first kernel locates each element of x among the knots, and a second kernel multiplies only the weights of the active
splines (:mod:`.kernels.banded`). PyTorch's own matrix product computes the contribution of the base function.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .chunked import product
from .config import Config
from .kernels.banded import TAPS, Located, launch_in, launch_locate, launch_out
from .problem import Problem


def out(p: Problem, config: Config) -> Tensor:
    """Return the contraction F ``[N, O]``."""
    y = p.x.new_empty(p.rows, p.outputs)
    located, base = _located(p, config), None
    if p.base_weight is None:
        launch_locate(p, located, None).run()
    else:
        features = p.x.new_empty(p.x.shape, dtype=p.matmul_dtype)
        launch_locate(p, located, features).run()
        base = product(p, features, p.base_weight)
    launch_out(p, config, located, base, y).run()
    return y


def into(p: Problem, config: Config) -> Tensor:
    """Return the contraction H ``[N, I]``."""
    assert p.g is not None
    located = _located(p, config)
    base = None if p.base_weight is None else product(p, p.g, p.base_weight.t())
    launch_locate(p, located, base).run()
    parts = triton.cdiv(p.outputs, config.inner)
    h = p.x.new_empty(parts, *p.x.shape, dtype=p.x.dtype if parts == 1 else p.work)
    launch_in(p, config, located, h).run()
    return h[0] if parts == 1 else h.sum(0).to(p.x.dtype)


def _located(p: Problem, config: Config) -> Located:
    """Return memory for the results of the kernel that locates x."""
    padded = triton.cdiv(p.rows, config.rows) * config.rows
    starts = p.x.new_empty(p.inputs, padded, dtype=torch.int16)
    if p.name == "F":  # for F, the values are stored in pairs in the dtype of the weights
        return Located(starts, p.x.new_empty(p.inputs, TAPS // 2, padded, dtype=torch.int32), padded)
    return Located(starts, p.x.new_empty(p.inputs, TAPS + 1, padded, dtype=torch.float32), padded)
