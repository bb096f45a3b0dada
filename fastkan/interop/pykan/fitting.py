"""``fit_params``: the fit of a function to samples, with the same arguments as in pykan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import Flag, checked

from ...symbolic.search import fit_params as search_params


@checked(verbose=Flag())
def fit_params(
    x: Tensor,
    y: Tensor,
    fun: Any,
    a_range: Any = None,
    b_range: Any = None,
    grid_number: object = None,
    iteration: object = None,
    verbose: bool = True,
    device: object = None,
) -> tuple[Tensor, Tensor]:
    """Fit the parameters a, b, c and d of ``c fun(a x + b) + d`` to samples ``y`` at ``x``.

    Args:
        x, y: samples ``[N]``.
        fun: a function of a tensor, or the name of a function in the library.
        a_range, b_range: lower and upper bounds of a and of b (default: no bounds).
        grid_number, iteration, device: ignored, because the search chooses its own grid and number of steps.
        verbose: whether to print R2.

    Returns:
        A tuple of the parameters ``[4]``, in the order a, b, c, d, and of R2. Both tensors have the dtype of ``x``.

    Raises:
        TypeError, ValueError: if the samples do not fit together or are not finite.

    Example:
        >>> x = torch.linspace(-1, 1, 101)
        >>> params, r2 = fit_params(x, 5 * torch.sin(3 * x + 1) + 1, torch.sin)
        r2 is 1.000000
        >>> [round(value, 3) for value in params.tolist()]
        [3.0, 1.0, 5.0, 1.0]
    """
    params, r2 = search_params(x.detach(), y.detach(), fun, a_range, b_range)
    if verbose:
        print(f"r2 is {r2:.6f}")
        if r2 < 0.9:
            print("r2 is not high: another function may fit better")
    return params.to(x), torch.as_tensor(r2, dtype=x.dtype, device=x.device)
