"""Least squares for many fits at once, by variable projection with Levenberg-Marquardt steps.

A fit is ``c f(z) + d`` with ``z = theta_1 phi_1 + theta_2 phi_2``. The best c and d are computed exactly for each
theta, so that the steps are only in the two dimensions of theta (Golub and Pereyra 1973, with Kaufman's Jacobian). In
each step, each function is evaluated once, on all fits of the function, and all other arithmetic is batched over the
fits of all functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layers.function_library import SymbolicFunction
from .starts import enclosing_branch

MIN_DAMPING = 1e-12
# Loss (unexplained fraction of the variance) below which a fit is finished
MIN_LOSS = 1e-28

# Expected relative decrease of the loss below which a fit is finished, if its step is nearly undamped
MIN_PROGRESS = 1e-4

# Maximum of |f|, and of |c| in standard deviations of y, because both have to be representable in float32
MAX_VALUE = 1e25


class Fits(NamedTuple):
    """A batch of R fits, sorted by the index of their function."""

    function: Tensor  # [R], long, index of each fit's function, non-decreasing
    theta: Tensor  # [R, 2], current parameters
    phi: Tensor  # [R, 2, N] or [1, 2, N], coefficients of theta in z
    ends: Tensor  # [R, 2, 2] or [1, 2, 2], phi at the two ends of the range of x
    y: Tensor  # [R, N], values to be fitted, with a weighted mean of 0
    weight: Tensor | None  # [R, N], weights that sum to 1 in each row; None for equal weights
    low: Tensor  # [R, 2], lower bounds of theta
    high: Tensor  # [R, 2], upper bounds of theta
    margin: float  # minimum fraction of the distance between theta and a bound that must remain after one step
    max_amplitude: Tensor  # [R], maximum of |c f| in standard deviations of y, which limits rounding errors

    def take(self, rows: Tensor) -> Fits:
        """Select the fits with the indices, or with the mask, ``rows``."""
        selected: dict[str, Any] = {
            name: value[rows]
            for name, value in self._asdict().items()
            if isinstance(value, Tensor) and not len(value) == 1 != len(self.theta)
        }
        return self._replace(**selected)


class State(NamedTuple):
    """The loss of R fits and its derivatives with respect to theta."""

    loss: Tensor  # [R], unexplained fraction of the variance; infinite where theta is not usable
    hessian: Tensor  # [R, 3], entries 11, 12 and 22 of the Gauss-Newton Hessian of half the loss
    gradient: Tensor  # [R, 2], negative gradient of half the loss


def polish(functions: list[SymbolicFunction], fits: Fits, steps: int) -> tuple[Tensor, Tensor]:
    """Take at most ``steps`` steps in each fit, and return a tuple of the final theta ``[R, 2]`` and the loss ``[R]``.

    The loss is infinite where the initial theta was outside the domain of the function.
    """
    theta, loss = fits.theta.clone(), torch.full_like(fits.theta[:, 0], torch.inf)
    if not len(theta):
        return theta, loss
    rows = torch.arange(len(theta))
    state = evaluate(functions, fits)
    loss.copy_(state.loss)
    damping = torch.full_like(loss, 1e-3)
    for _ in range(steps):
        step = _marquardt_step(fits, state, damping)
        # ``expected`` is at least half of the relative decrease that the quadratic model of the loss predicts
        expected = (step * state.gradient).sum(1) / state.loss
        active = state.loss.isfinite() & (state.loss > MIN_LOSS)
        active &= expected > torch.where(damping < 0.1, MIN_PROGRESS, MIN_PROGRESS / 100)
        if not bool(active.all()):
            if not bool(active.any()):
                break
            rows, fits, damping, step = rows[active], fits.take(active), damping[active], step[active]
            state = State(*(value[active] for value in state))
        new = _apply_step(fits, step)
        trial = evaluate(functions, fits._replace(theta=new))
        better = trial.loss < state.loss
        fits = fits._replace(theta=torch.where(better.unsqueeze(1), new, fits.theta))
        damping = torch.where(better, (damping / 10).clamp(min=MIN_DAMPING), damping.clamp(min=1e-4) * 10)
        state = State(*(torch.where(better if new.ndim == 1 else better.unsqueeze(1), new, old)
                        for new, old in zip(trial, state)))  # fmt: skip
        theta[rows], loss[rows] = fits.theta, state.loss
    return theta, loss


def _marquardt_step(fits: Fits, state: State, damping: Tensor) -> Tensor:
    """Return the Levenberg-Marquardt step ``[R, 2]``, damped relative to the diagonal of the Hessian."""
    h11, h12, h22 = state.hessian.unbind(1)
    g1, g2 = state.gradient.unbind(1)
    # If one coordinate of theta is at a bound that the step would cross, only the other coordinate is changed
    at_bound = ((fits.theta >= fits.high) & (state.gradient > 0)) | ((fits.theta <= fits.low) & (state.gradient < 0))
    s1, s2 = h11.sqrt(), h22.sqrt()
    g1 = torch.where(at_bound[:, 0] | (s1 == 0), 0.0, g1 / s1)
    g2 = torch.where(at_bound[:, 1] | (s2 == 0), 0.0, g2 / s2)
    cosine = torch.where(at_bound.any(1) | (s1 == 0) | (s2 == 0), 0.0, h12 / (s1 * s2))
    diagonal = 1 + damping
    determinant = diagonal.square() - cosine.square()
    d1 = (diagonal * g1 - cosine * g2) / determinant
    d2 = (diagonal * g2 - cosine * g1) / determinant
    return torch.stack([torch.where(s1 > 0, d1 / s1, 0.0), torch.where(s2 > 0, d2 / s2, 0.0)], 1)


def _apply_step(fits: Fits, step: Tensor) -> Tensor:
    theta = fits.theta + step
    # Infinite bounds are treated separately, because 0 times infinity would be NaN
    low = torch.where(fits.low.isfinite(), fits.low + fits.margin * (fits.theta - fits.low), -torch.inf)
    high = torch.where(fits.high.isfinite(), fits.high - fits.margin * (fits.high - fits.theta), torch.inf)
    return theta.clamp(low, high)


def evaluate(functions: list[SymbolicFunction], fits: Fits) -> State:
    """Return the loss of each fit and its derivatives with respect to theta, with the best c and d for each theta."""
    theta, phi, weight, y = fits.theta, fits.phi, fits.weight, fits.y
    z = theta[:, :1] * phi[:, 0] + theta[:, 1:] * phi[:, 1]
    f, slope = _values(functions, fits.function, z)
    size = f.abs().amax(1, keepdim=True)
    mean = _mean(f, weight)
    f = f - mean
    norm = _mean(f.square(), weight)
    varies = norm > (1e-14 * size).square()
    norm = torch.where(varies, norm, 1.0)
    c = _mean(f * y, weight) / norm
    residual = y - c * f
    variance = _mean(y.square(), weight)
    loss = _mean(residual.square(), weight) / variance

    def jacobian(k: int) -> Tensor:
        g = slope * phi[:, k]
        g = g - _mean(g, weight)
        return c * (g - f * (_mean(g * f, weight) / norm))

    j1, j2 = jacobian(0), jacobian(1)
    hessian = torch.cat([_mean(j1.square(), weight), _mean(j1 * j2, weight), _mean(j2.square(), weight)], 1) / variance
    gradient = torch.cat([_mean(j1 * residual, weight), _mean(j2 * residual, weight)], 1) / variance
    std = variance.sqrt()
    small = (size <= MAX_VALUE) & (c.abs() <= MAX_VALUE * std)
    small &= c.abs() * size <= fits.max_amplitude.unsqueeze(1) * std
    usable = (varies & small).squeeze(1) & _in_domain(functions, fits)
    usable &= loss.squeeze(1).isfinite() & hessian.isfinite().all(1) & gradient.isfinite().all(1)
    return State(torch.where(usable, loss.squeeze(1), torch.inf), hessian, gradient)


def _in_domain(functions: list[SymbolicFunction], fits: Fits) -> Tensor:
    """Return a mask ``[R]`` that is True where z stays in one branch of the domain over the whole range of x."""
    if fits.margin:  # theta is the pair of values of z at the two ends of the range, and no step crosses a bound
        return ~fits.low.isnan().any(1)
    ends = (fits.theta.unsqueeze(2) * fits.ends).sum(1)  # [R, 2]
    groups = _groups(functions, fits.function, ends)
    return ~torch.cat([enclosing_branch(one, part.amin(1), part.amax(1))[0] for one, part in groups]).isnan()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean(1, keepdim=True)
    return (values * weight).sum(1, keepdim=True)


def _groups(
    functions: list[SymbolicFunction], function: Tensor, values: Tensor
) -> list[tuple[SymbolicFunction, Tensor]]:
    counts = torch.bincount(function, minlength=len(functions)).tolist()
    return [(one, part) for one, part in zip(functions, values.split(counts)) if len(part)]


def _values(functions: list[SymbolicFunction], function: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple of the values ``[R, N]`` and the slopes ``[R, N]`` of the function of each fit at ``z [R, N]``."""
    values, slopes = [], []
    with torch.enable_grad():
        for one, part in _groups(functions, function, z):
            part = part.detach().requires_grad_()
            value = one.fun(part)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), part)
            else:
                slope = torch.zeros_like(part)
            values.append(value.detach())
            slopes.append(slope)
    return torch.cat(values), torch.cat(slopes)
