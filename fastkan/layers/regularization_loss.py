"""``KANLinear.regularization_loss``: efficient-kan's penalty on the spline coefficients of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import REAL, checked

from .distributed import whole


@checked(regularize_activation=REAL, regularize_entropy=REAL)
def regularization_loss(
    layer: nn.Module, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
) -> Tensor:
    """Return efficient-kan's penalty on the spline coefficients, for training loops that were written for that package.

    The size of an edge is the mean magnitude of its coefficients, without the factor ``spline_scale``. The penalty is
    ``regularize_activation`` times the sum of the sizes, plus ``regularize_entropy`` times the entropy, in nats, of the
    sizes divided by their sum. The penalty does not depend on data, in contrast to :meth:`KAN.get_reg`, which measures
    the values of the edges.

    Args:
        regularize_activation, regularize_entropy: the weights of the two terms.

    Returns:
        A tensor without dimensions, which is differentiable. An edge that is off adds nothing.

    Example:
        >>> bool(KANLinear(2, 5).regularization_loss(1.0, 0.0) > 0)
        True
    """
    coefficients: Any = whole(layer.spline_weight)
    weight = coefficients if layer.mask is None else coefficients * whole(layer.mask)
    sizes = weight.abs().mean(0)
    total = sizes.sum()
    smallest = torch.finfo(sizes.dtype).tiny  # edges of size 0 have a share of 0, which has no logarithm
    shares = sizes / total.clamp(min=smallest)
    entropy = -(shares * shares.clamp(min=smallest).log()).sum()
    return regularize_activation * total + regularize_entropy * entropy
