"""The public functions for the contractions F, G and H, which validate their arguments and call a backend."""

from __future__ import annotations

from torch import Tensor

from .autograd import dispatch as routing
from .basis import Basis
from .trilinear import CONTRACTIONS, Operands
from .validation import INDEX, check_operands, checked


def _contract(name: str, x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int):
    check_operands(x, knots, operands, basis, CONTRACTIONS[name].filled)
    return routing.contract(name, x, knots, operands, basis, derivative)


@checked(derivative=INDEX)
def contract_out(
    x: Tensor,
    knots: Tensor,
    weight: Tensor,
    base_weight: Tensor | None = None,
    v: Tensor | None = None,
    *,
    basis: Basis,
    derivative: int = 0,
) -> Tensor:
    """Compute F_d, ``y[n,o] = sum_{b,i} v[n,i] psi_b^(d)(x[n,i]) W[b,i,o]``; F_0 is the forward pass of a KAN layer.

    Args:
        x: the inputs ``[N, I]``.
        knots: the knots ``[I, G + 2k + 1]`` of the splines, in the units of x, non-decreasing in each row.
        weight: the spline coefficients ``[G + k, I, O]``.
        base_weight: the weights ``[I, O]`` of the base function, or None if the base function is ``"none"``.
        v: a factor ``[N, I]`` for each input value, or None if all factors are 1.
        basis: the spline order and the base function; see :class:`Basis`.
        derivative: the order d >= 0 of the derivative of the features. If d is larger than the spline order, all
            splines contribute 0.

    Returns:
        A tensor ``[N, O]`` in the dtype of x. The result can be differentiated any number of times with respect to x,
        v, weight and base_weight. If ``knots.requires_grad``, the reference backend is used, and the result can also be
        differentiated with respect to the knots.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.
        ValueError: if ``derivative`` is above 4 and the base function is silu.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 4)
        >>> contract_out(torch.rand(10, 2), knots, weight, basis=basis_of(knots, 3, "none")).shape
        torch.Size([10, 4])
    """
    return _contract("F", x, knots, Operands(v, weight, base_weight), basis, derivative)


@checked(derivative=INDEX)
def contract_weight(
    x: Tensor,
    knots: Tensor,
    g: Tensor,
    v: Tensor | None = None,
    *,
    basis: Basis,
    derivative: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Compute G_d, ``dW[b,i,o] = sum_n v[n,i] psi_b^(d)(x[n,i]) g[n,o]``; G_0 is the gradient with respect to W.

    Args:
        x, knots, v, basis, derivative: arguments with the same meaning as in :func:`contract_out`.
        g: a tensor ``[N, O]``, usually the gradient of the layer's output.

    Returns:
        A tuple of the result ``[G + k, I, O]`` for the splines and the result ``[I, O]`` for the base function. The
        result for the base function is None if the base function is ``"none"``.

    Raises:
        TypeError, ValueError: in the same cases as :func:`contract_out`.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> splines, base = contract_weight(torch.rand(10, 2), knots, torch.randn(10, 4), basis=basis_of(knots, 3))
        >>> splines.shape, base.shape
        (torch.Size([8, 2, 4]), torch.Size([2, 4]))
    """
    return _contract("G", x, knots, Operands(v, g=g), basis, derivative)


@checked(derivative=INDEX)
def contract_in(
    x: Tensor,
    knots: Tensor,
    weight: Tensor,
    base_weight: Tensor | None,
    g: Tensor,
    *,
    basis: Basis,
    derivative: int = 0,
) -> Tensor:
    """Compute H_d, ``h[n,i] = sum_{b,o} psi_b^(d)(x[n,i]) W[b,i,o] g[n,o]``; H_1 is the gradient with respect to x.

    Args:
        x, knots, weight, base_weight, basis, derivative: arguments with the same meaning as in :func:`contract_out`.
        g: a tensor ``[N, O]``, usually the gradient of the layer's output.

    Returns:
        A tensor ``[N, I]`` in the dtype of x.

    Raises:
        TypeError, ValueError: in the same cases as :func:`contract_out`.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 4)
        >>> basis = basis_of(knots, 3, "none")
        >>> contract_in(torch.rand(10, 2), knots, weight, None, torch.randn(10, 4), basis=basis, derivative=1).shape
        torch.Size([10, 2])
    """
    return _contract("H", x, knots, Operands(None, weight, base_weight, g), basis, derivative)
