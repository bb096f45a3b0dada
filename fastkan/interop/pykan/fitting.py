"""``fit_params``: the fit of one function to samples, with pykan's arguments."""

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
    """Fit ``c fun(a x + b) + d`` to samples of one function.

    Args:
        x, y: ``[N]``.
        fun: a function of a tensor, or a name in the library.
        a_range, b_range: bounds of a and b; None for none.
        grid_number, iteration, device: ignored; the search chooses its own grid and number of steps.
        verbose: whether to print R2.

    Returns:
        (a, b, c, d), ``[4]``, and R2, in the dtype of x.

    Raises:
        TypeError, ValueError: for samples that don't fit together or are not finite.

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
