"""F, G and H as public functions: the arguments are validated, then the contraction is dispatched."""

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
    """F_d: ``y[n,o] = sum_{b,i} v[n,i] psi_b^(d)(x[n,i]) W[b,i,o]``, the forward of a KAN layer.

    Args:
        x: ``[N, I]``.
        knots: ``[I, G + 2k + 1]``, each row non-decreasing, in the units of x.
        weight: ``[G + k, I, O]``, the spline coefficients.
        base_weight: ``[I, O]``, the weights of the base function; None for ``base="none"``.
        v: ``[N, I]``, a factor for each input value; None stands for all ones.
        basis: the spline order and base function; see :class:`Basis`.
        derivative: order d of the derivative of the features, 0 or more. Above the spline order all splines
            contribute 0.

    Returns:
        ``[N, O]`` in x's dtype, differentiable with respect to x, v, weight and base_weight to any order. If
        ``knots.requires_grad``, it is computed by the reference backend and differentiable with respect to
        the knots too.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments do not fit together.
        ValueError: for a derivative of silu above 4.

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
    """G_d: ``dW[b,i,o] = sum_n v[n,i] psi_b^(d)(x[n,i]) g[n,o]``, the gradient with respect to the weights.

    Args:
        g: ``[N, O]``, usually the gradient of the layer's output. The others are as in :func:`contract_out`.

    Returns:
        ``[G + k, I, O]`` for the splines, and ``[I, O]`` for the base function, or None for ``base="none"``.

    Raises:
        TypeError, ValueError: as in :func:`contract_out`.

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
    """H_d: ``h[n,i] = sum_{b,o} psi_b^(d)(x[n,i]) W[b,i,o] g[n,o]``; H_1 is the gradient with respect to x.

    Args:
        g: ``[N, O]``, usually the gradient of the layer's output. The others are as in :func:`contract_out`.

    Returns:
        ``[N, I]`` in x's dtype.

    Raises:
        TypeError, ValueError: as in :func:`contract_out`.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 4)
        >>> basis = basis_of(knots, 3, "none")
        >>> contract_in(torch.rand(10, 2), knots, weight, None, torch.randn(10, 4), basis=basis, derivative=1).shape
        torch.Size([10, 2])
    """
    return _contract("H", x, knots, Operands(None, weight, base_weight, g), basis, derivative)
