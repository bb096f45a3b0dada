"""``LBFGS``: an optimizer for training loops that are written by users."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lbfgs import _strong_wolfe

from fastkan_kernels import Choice, Int, Optional, Real, checked

TOLERANCE = Real(least=0)


class LBFGS(torch.optim.LBFGS):
    """A variant of ``torch.optim.LBFGS`` that also uses the curvature of very small steps.

    L-BFGS estimates curvature from pairs of a step and the change of the gradient along the step. ``torch.optim.LBFGS``
    discards each pair whose inner product is below 1e-10. If the loss is near machine precision, or comes from a
    partial differential equation, all pairs can be discarded, and the loss stops decreasing.

    Args:
        params: parameters to train, as a single parameter group.
        lr: learning rate.
        max_iter: maximum number of iterations in each call of :meth:`step`.
        max_eval: maximum number of evaluations of the closure in each call of :meth:`step`
            (default: 1.25 ``max_iter``).
        tolerance_grad: a call of :meth:`step` ends if no absolute derivative is above this value.
        tolerance_change: a call of :meth:`step` ends if the change of the loss or of the parameters is below this
            value.
        tolerance_ys: inner product of a step and a change of the gradient below which the pair is discarded.
        history_size: maximum number of pairs that are stored.
        line_search_fn: name of the line search, ``"strong_wolfe"``, or None for steps of fixed length.

    Raises:
        TypeError, ValueError: if a number is out of range.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = LBFGS([x], lr=1, line_search_fn="strong_wolfe", tolerance_ys=1e-32)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> start = optimizer.step(closure)
        >>> bool(x.abs() < 1e-6)
        True
    """

    @checked(
        lr=TOLERANCE, max_iter=Int(least=1), max_eval=Optional(Int(least=1)), tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE, tolerance_ys=TOLERANCE, history_size=Int(least=1),
        line_search_fn=Optional(Choice(["strong_wolfe"])),
    )  # fmt: skip
    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        tolerance_ys: float = 1e-32,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        try:
            super().__init__(
                params, lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn
            )
        except (TypeError, ValueError, KeyError) as error:  # caused by ``params``, the only argument not checked before
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"params must be the parameters to train, in one group: {error}") from None
        self.param_groups[0]["tolerance_ys"] = tolerance_ys

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make up to ``max_iter`` iterations.

        Args:
            closure: function that zeroes the gradients, computes the loss, calls ``backward`` on the loss, and returns
                the loss.

        Returns:
            The loss before the first iteration.
        """
        evaluate = torch.enable_grad()(closure)
        options, state = self.param_groups[0], self.state[self._params[0]]
        start = evaluate()
        loss, calls = float(start), 1
        gradient = self._gather_flat_grad()
        if gradient.abs().max() <= options["tolerance_grad"]:
            return start
        for iteration in range(1, options["max_iter"] + 1):
            direction = self._direction(state, gradient)
            state["prev_flat_grad"] = gradient.clone()
            if state["n_iter"] == 1:
                length = min(1.0, 1.0 / float(gradient.abs().sum())) * options["lr"]
            else:
                length = options["lr"]
            slope = gradient.dot(direction)
            if slope > -options["tolerance_change"]:
                break
            before = loss
            if options["line_search_fn"] is None:
                self._add_grad(length, direction)
                if iteration < options["max_iter"]:
                    loss = float(evaluate())
                    gradient = self._gather_flat_grad()
                used = 1
            else:
                here = self._clone_param()
                probe = lambda x, t, d: self._directional_evaluate(evaluate, x, t, d)  # noqa: E731
                loss, gradient, length, used = _strong_wolfe(probe, here, length, direction, loss, gradient, slope)
                self._add_grad(length, direction)
            state.update(d=direction, t=length)
            calls += used
            if (
                calls >= options["max_eval"]
                or gradient.abs().max() <= options["tolerance_grad"]
                or (direction * length).abs().max() <= options["tolerance_change"]
                or abs(loss - before) < options["tolerance_change"]
            ):
                break
        state["func_evals"] = state.get("func_evals", 0) + calls
        return start

    def _direction(self, state: dict[str, Any], gradient: torch.Tensor) -> torch.Tensor:
        """Return the descent direction, which is minus the inverse Hessian times the gradient. The inverse Hessian is
        approximated from the stored pairs."""
        state["n_iter"] = state.get("n_iter", 0) + 1
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1)
            return gradient.neg()
        changes, steps, inverses = state["old_dirs"], state["old_stps"], state["ro"]
        change, step = gradient - state["prev_flat_grad"], state["d"] * state["t"]
        product = change.dot(step)
        if product > self.param_groups[0]["tolerance_ys"]:
            for history, new in ((changes, change), (steps, step), (inverses, 1.0 / product)):
                if len(history) == self.param_groups[0]["history_size"]:
                    history.pop(0)
                history.append(new)
            state["H_diag"] = product / change.dot(change)
        direction, shares = gradient.neg(), []
        for change, step, inverse in zip(reversed(changes), reversed(steps), reversed(inverses)):
            shares.append(step.dot(direction) * inverse)
            direction.add_(change, alpha=-shares[-1])
        direction.mul_(state["H_diag"])
        for change, step, inverse, share in zip(changes, steps, inverses, reversed(shares)):
            direction.add_(step, alpha=share - change.dot(direction) * inverse)
        return direction
