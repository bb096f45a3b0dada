"""Statistics of each edge function over a batch. The contractions F, G and H cannot compute such statistics, because
they sum over edges.

Let C_i be the P x P covariance matrix, over the rows n of the batch, of the features of input i. The variance of edge
(i, o) is then ``W_io^T C_i W_io``. Computing the standard deviations of all edges therefore takes N I P^2 + I O P^2
operations, and no N x I x O tensor is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .autograd import dispatch as routing
from .backends.modes import has_values
from .backends.registry import BACKENDS
from .basis import Basis, exact_products, working_dtype
from .bspline.cox_de_boor import base_function, features, splines
from .trilinear import Operands
from .validation import INDEX, check_operands, checked

# Maximum number of elements, edge values and features together, in a block of rows on a CPU.
BLOCK_ELEMENTS = 1 << 20

# Maximum number of features in a block of rows on a CPU. 2**18 features take 1 MiB in float32, which fits into a core's
# cache.
FEATURE_ELEMENTS = 1 << 18

# Maximum number of elements in a block of rows on other devices, where a block has to be large enough to occupy the
# device. 2**24 elements take 64 MiB in float32.
GPU_ELEMENTS = 1 << 24


@checked(correction=INDEX)
def edge_std(
    x: Tensor,
    knots: Tensor,
    weight: Tensor,
    base_weight: Tensor | None = None,
    *,
    basis: Basis,
    correction: int = 1,
) -> Tensor:
    """Compute the standard deviation over the batch of each edge function phi_io(x[n, i]).

    Args:
        x: the inputs ``[N, I]``.
        knots, weight, base_weight, basis: arguments with the same meaning as in :func:`contract_out`.
        correction: the number that is subtracted from N in the divisor, as in :func:`torch.std`.

    Returns:
        A differentiable tensor ``[I, O]`` in the dtype of x. If all values of an edge are equal, the gradient of its
        standard deviation is 0.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.
        ValueError: if x has no more than ``correction`` rows.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> edge_std(torch.rand(10, 2), knots, weight, basis=basis_of(knots, 3, "none")).shape
        torch.Size([2, 5])
    """
    check_operands(x, knots, Operands(weight=weight, base_weight=base_weight), basis, "W")
    covariance = feature_covariance(x, knots, basis=basis, correction=correction)
    w = _joined(weight, base_weight).to(covariance.dtype).transpose(0, 1)  # [I, P, O]
    with exact_products(x):
        variance = (w * (covariance @ w)).sum(1)
    varies = ~(variance <= 0)  # the negated comparison is true for NaN, so a NaN variance gives a NaN result
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0).to(x.dtype)


@checked(correction=INDEX)
def feature_covariance(x: Tensor, knots: Tensor, *, basis: Basis, correction: int = 1) -> Tensor:
    """Compute, for each input, the covariance matrix of its features over the batch.

    Returns:
        A tensor ``[I, P, P]`` that can be differentiated with respect to x. The P features are the G + k splines,
        followed by the base function if the basis has one.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.
        ValueError: if x has no more than ``correction`` rows.

    Example:
        >>> knots = uniform_knots(2, grid_size=5, order=3)
        >>> feature_covariance(torch.rand(10, 2), knots, basis=basis_of(knots, 3)).shape
        torch.Size([2, 9, 9])
    """
    check_operands(x, knots, Operands(), basis)
    if x.shape[0] <= correction:
        raise ValueError(f"x must have more than {correction} rows for a standard deviation, got {x.shape[0]}")
    if routing.needs_composite(knots) is not None:
        psi = feature_values(x, knots, basis)
        centred = psi - psi[:1]
        centred = centred - centred.mean(0)
        with exact_products(x):
            return torch.einsum("npi,nqi->ipq", centred, centred) / (len(x) - correction)
    taken = routing.route(x, knots)
    with exact_products(x):
        # Under torch.compile the reference backend is used, because the compiler can fuse its operations.
        return _Covariance.apply(
            x, knots, basis, correction, taken.backend if taken.way == "functions" else "reference"
        )


def column_std(x: Tensor) -> Tensor:
    """Compute the standard deviation ``[I]`` of each column of ``x [N, I]``.

    If all values in a column are equal, the gradient of the column's standard deviation is 0.

    Example:
        >>> column_std(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([1.4142, 0.0000])
    """
    centred = x - x[:1]
    variance = (centred - centred.mean(0)).square().sum(0) / (len(x) - 1)
    varies = ~(variance <= 0)
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)


def edge_values(x: Tensor, knots: Tensor, weight: Tensor, base_weight: Tensor | None = None, *, basis: Basis) -> Tensor:
    """Compute the values ``phi_io(x[n, i])`` of all edge functions for all rows of x, as a tensor ``[N, I, O]``.

    The result is large; it is meant for plots and not for training steps.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> edge_values(torch.rand(10, 2), knots, weight, basis=basis_of(knots, 3, "none")).shape
        torch.Size([10, 2, 5])
    """
    check_operands(x, knots, Operands(weight=weight, base_weight=base_weight), basis, "W")
    return _edge_values(x, knots, weight, base_weight, basis).to(x.dtype)


def edge_mean_abs(
    x: Tensor, knots: Tensor, weight: Tensor, base_weight: Tensor | None = None, *, basis: Basis
) -> Tensor:
    """Compute the mean over the batch of the absolute edge values ``|phi_io(x[n, i])|``.

    Unlike the standard deviation, the mean absolute value cannot be computed from the covariance of the features. The
    computation takes N I O (G + k + 1) operations.

    Returns:
        A tensor ``[I, O]`` in the dtype of x.

    Raises:
        TypeError, ValueError: if the types, shapes, dtypes or devices of the arguments are inconsistent.
        ValueError: if x has no rows.

    Example:
        >>> knots, weight = uniform_knots(2, grid_size=5, order=3), torch.randn(8, 2, 5)
        >>> edge_mean_abs(torch.rand(10, 2), knots, weight, basis=basis_of(knots, 3, "none")).shape
        torch.Size([2, 5])
    """
    check_operands(x, knots, Operands(weight=weight, base_weight=base_weight), basis, "W")
    if x.shape[0] == 0:
        raise ValueError("x must have rows for a mean, got none")
    total = x.new_zeros(weight.shape[1:], dtype=working_dtype(x.dtype))
    for part in x.split(_block_rows(x, weight.shape[1] * (weight.shape[2] + weight.shape[0]), BLOCK_ELEMENTS)):
        # Each block is checkpointed, so that the backward pass stores the edge values of only one block at a time.
        part_sum = checkpoint(
            lambda part: _edge_values(part, knots, weight, base_weight, basis).abs().sum(0),
            part,
            use_reentrant=False,
            preserve_rng_state=False,  # no random numbers are drawn, and saving the RNG state would wait for the GPU
        )
        total = total + part_sum
    return (total / x.shape[0]).to(x.dtype)


def spline_values(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Evaluate all B-splines at x without gradients, by the fastest implementation for the device.

    The function returns the same values as :func:`splines`.

    Args:
        x: the inputs ``[N, I]``, in the dtype of the knots.
        knots: the knots ``[I, M]``, non-decreasing in each row.
        order: the degree k of the splines.

    Returns:
        A tensor ``[N, M - k - 1, I]``, which need not be contiguous.
    """
    if x.device.type != "cpu" or not has_values(x, knots) or knots.shape[1] < 2 * order + 2:
        return splines(x, knots, order)
    return feature_values(x, knots, Basis(order, "none"), 0, "cpu")


def _joined(weight: Tensor, base_weight: Tensor | None) -> Tensor:
    return weight if base_weight is None else torch.cat([weight, base_weight.unsqueeze(0)])


def feature_values(x: Tensor, knots: Tensor, basis: Basis, derivative: int = 0, backend: str = "reference") -> Tensor:
    """Return the values ``[N, P, I]`` of all features, with the base function last."""
    plain, quick = basis._replace(matmul_dtype=None), BACKENDS[backend].features
    if quick is None:
        psi, base = features(x, knots, plain, derivative)
    else:
        psi = quick(x, knots, plain, derivative)
        base = None if basis.base == "none" else base_function(x.to(psi.dtype), basis.base, derivative)
    return psi if base is None else torch.cat([psi, base.unsqueeze(1)], 1)


def _edge_values(x, knots, weight, base_weight, basis) -> Tensor:
    psi = feature_values(x, knots, basis)
    with exact_products(x):
        return torch.einsum("npi,pio->nio", psi, _joined(weight, base_weight).to(psi.dtype))


class _Covariance(torch.autograd.Function):
    """The autograd Function that computes :func:`feature_covariance` in blocks of rows.

    Each block is centred on its own mean and then merged into the total (Chan, Golub and LeVeque, Updating Formulae and
    a Pairwise Algorithm for Computing Sample Variances, 1979). Before the blocks are centred, the features of the first
    row are subtracted from every row, so that the covariance of a constant input is exactly 0 instead of a rounding
    error.
    """

    @staticmethod
    def forward(ctx, x: Tensor, knots: Tensor, basis: Basis, correction: int, backend: str) -> Tensor:
        first = feature_values(x[:1], knots, basis, 0, backend)
        mean, products, seen = 0.0 * first[0], first.new_zeros(()), 0
        for part in _feature_blocks(x, knots, basis):
            psi = feature_values(part, knots, basis, 0, backend) - first
            middle = psi.mean(0)
            centred = psi.sub_(middle).permute(2, 1, 0).contiguous()  # [I, P, rows]
            apart, joined = (middle - mean).t(), seen + len(part)
            products = products + centred @ centred.mT
            products = products + (seen * len(part) / joined) * (apart.unsqueeze(2) * apart.unsqueeze(1))
            mean, seen = mean + apart.t() * (len(part) / joined), joined
        ctx.save_for_backward(x, knots, first + mean)
        ctx.basis, ctx.divisor, ctx.backend = basis, len(x) - correction, backend
        return products / ctx.divisor

    @staticmethod
    def backward(ctx, upstream: Tensor):
        x, knots, mean = ctx.saved_tensors
        backend = ctx.backend
        # If gradients are enabled, second derivatives may be needed, so the mean is recomputed as a differentiable
        # function of x.
        if torch.is_grad_enabled():
            backend = "reference"
            mean = feature_values(x, knots, ctx.basis).mean(0)
        weights = (upstream + upstream.mT) / ctx.divisor
        parts = []
        for part in _feature_blocks(x, knots, ctx.basis):
            centred = feature_values(part, knots, ctx.basis, 0, backend) - mean
            slope = feature_values(part, knots, ctx.basis, 1, backend)
            with exact_products(x):
                # Matrix products are used because autograd.grad(is_grads_batched=True) cannot batch einsum.
                parts.append((slope * (weights @ centred.permute(2, 1, 0)).permute(2, 1, 0)).sum(1))
        return torch.cat(parts).to(x.dtype), None, None, None, None


def _feature_blocks(x: Tensor, knots: Tensor, basis: Basis) -> tuple[Tensor, ...]:
    return x.split(_block_rows(x, x.shape[1] * (basis.splines_of(knots) + 1), FEATURE_ELEMENTS))


def _block_rows(x: Tensor, row_elements: int, cpu_elements: int) -> int:
    """Return the number of rows of x in a block, if each row takes memory for ``row_elements`` numbers."""
    return max(1, (cpu_elements if x.device.type == "cpu" else GPU_ELEMENTS) // max(1, row_elements))
