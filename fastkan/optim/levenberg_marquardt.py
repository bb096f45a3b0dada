"""The Levenberg-Marquardt method, for sums of squares of row-wise residuals and for cross entropies.

Each step minimizes a quadratic model of the cost around the parameters theta (Levenberg 1944, Marquardt 1963):

    (J^T J + damping * D) delta = -J^T r

J is the Jacobian of the residuals r, which :class:`fastkan_kernels.RowJacobian` provides, and D is the diagonal of
J^T J. A trial that does not decrease the cost is repeated with more damping, as in Nielsen, Damping Parameter in
Marquardt's Method, 1999. The step follows the curvature of the valley by the geodesic acceleration of Transtrum and
Sethna, Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares minimization, arXiv 1201.5885.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastkan_kernels import (
    FLAG,
    Int,
    Real,
    RowJacobian,
    check_residuals,
    checked,
    kind_of,
    record_rows,
    repr_with_shapes,
    warn,
)

MIN_DAMPING, MAX_DAMPING = 1e-15, 1e15
# The maximum number of trials in a step. The damping grows by the factors 2, 4, 8, ... from one trial to the next.
MAX_TRIALS = 8
# The smallest element of D relative to the largest element. A parameter without influence on the residuals has the
# diagonal element 0, and would make the matrix singular.
MIN_SCALE = 1e-10
# The length of the finite difference for the second derivative along the step, as a share of the step. Transtrum and
# Sethna recommend 0.1.
DIFFERENCE = 0.1
# The smallest probability in the factors of a cross entropy. The square root of the probability and the inverse of the
# square root are normal float32 numbers.
MIN_PROBABILITY = 1e-38
# The maximum size of the acceleration, relative to the step.
MAX_ACCELERATION = 0.75
# The maximum number of multiplications for a matrix J^T J. The matrix is computed from a share of the rows if all rows
# would take more multiplications.
MAX_PRODUCTS = 1 << 36
# The relative residual at which conjugate gradients stop, and the maximum number of iterations.
CG_TOLERANCE, CG_ITERATIONS = 0.1, 20
# A parameter that influences fewer than this number of rows may be missed by a share of the rows.
MISSED_ROWS = 3


class Block(NamedTuple):
    """A term of the cost, which depends on row-wise outputs.

    Attributes:
        outputs: the outputs ``[M]`` or ``[M, C]``.
        cost: the value of the term.
        residuals: numbers ``[M * C]``. The gradient of the cost with respect to the parameters is ``J^T residuals`` and
            the Gauss-Newton matrix is ``J^T J``, for the Jacobian J of the entries that ``upstream`` describes.
        upstream: the argument ``upstream`` of :meth:`fastkan_kernels.Recorder.jacobian`.
    """

    outputs: Tensor
    cost: float
    residuals: Tensor
    upstream: Sequence[Tensor] | None = None

    def __repr__(self) -> str:
        return repr_with_shapes(self)


class Report(NamedTuple):
    """The result of a step.

    Attributes:
        before, cost: the cost before and after the step.
        damping: the damping of the next step.
        gain: the decrease of the cost divided by the decrease that the quadratic model predicts, in the last trial, or
            minus infinity if there was no trial with a finite prediction.
        trials: the number of trials.
        accepted: whether a trial decreased the cost. If not, the parameters have not changed.
    """

    before: float
    cost: float
    damping: float
    gain: float
    trials: int
    accepted: bool


def cross_entropy(logits: Tensor, labels: Tensor, weight: float | Tensor = 1.0) -> Block:
    """Return the sum of the cross entropies of all rows, as a term of the cost of :class:`LevenbergMarquardt`.

    The quadratic model contains the exact Hessian matrix ``diag(p) - p p^T`` of the cross entropy with respect to the
    logits (the generalized Gauss-Newton matrix of Schraudolph, 2002), where p are the probabilities. The matrix is
    ``S S^T`` with ``S = diag(q) - p q^T`` and ``q = sqrt(p)``, and the gradient is ``S ((p - y) / q)``.

    Args:
        logits: the logits ``[M, C]``.
        labels: the indices ``[M]`` of the classes.
        weight: a positive factor of the sum, for example ``1 / M`` for the mean, or a tensor ``[M]`` with a factor for
            each row.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, shape or dtype, or is out of range.

    Example:
        >>> layer = KANLinear(2, 3)
        >>> x, labels = torch.rand(100, 2), torch.randint(3, (100,))
        >>> optimizer = LevenbergMarquardt(layer)
        >>> cost = optimizer.step(lambda: cross_entropy(layer(x), labels, 1 / 100))
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be a floating-point tensor [M, C], got {_shown(logits)}")
    if not isinstance(labels, Tensor) or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be an int64 tensor [{len(logits)}], got {_shown(labels)}")
    check_residuals(logits)
    weight = _row_weights(weight, logits)
    classes = logits.shape[1]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    wide = logits.detach().double()
    cost = float((weight * nn.functional.cross_entropy(wide, labels, reduction="none")).sum())
    probability = wide.softmax(1).clamp_min(MIN_PROBABILITY)
    root = probability.sqrt()
    residuals = root.clone()
    places = labels.unsqueeze(1)
    residuals.scatter_(1, places, (probability.gather(1, places) - 1) / root.gather(1, places))
    factor = weight.sqrt().unsqueeze(1)
    upstream = []
    for c in range(classes):
        column = -probability * root[:, [c]]
        column[:, c] += root[:, c]
        upstream.append((factor * column).to(logits.dtype))
    return Block(logits, cost, (factor * residuals).flatten(), upstream)


def binary_cross_entropy(logits: Tensor, labels: Tensor, weight: float | Tensor = 1.0) -> Block:
    """Return the sum of the binary cross entropies of all elements, as a term of the cost of
    :class:`LevenbergMarquardt`.

    As in :func:`cross_entropy`, the quadratic model contains the exact second derivative ``p (1 - p)`` with respect to
    each logit, where p is the probability of the label 1.

    Args:
        logits: the logits ``[M, C]``.
        labels: numbers from 0 to 1 of the shape of ``logits``.
        weight: a positive factor of the sum, or a tensor ``[M]`` with a factor for each row.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, shape or dtype, or is out of range.

    Example:
        >>> layer = KANLinear(2, 1)
        >>> x = torch.rand(100, 2)
        >>> labels = (x[:, :1] > x[:, 1:]).float()
        >>> optimizer = LevenbergMarquardt(layer)
        >>> cost = optimizer.step(lambda: binary_cross_entropy(layer(x), labels, 1 / 100))
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be a floating-point tensor [M, C], got {_shown(logits)}")
    if not isinstance(labels, Tensor) or labels.shape != logits.shape:
        raise ValueError(f"labels must be a tensor {list(logits.shape)}, got {_shown(labels)}")
    check_residuals(logits)
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise ValueError(f"labels must be from 0 to 1, got {float(labels.min()):g} to {float(labels.max()):g}")
    weight = _row_weights(weight, logits).unsqueeze(1)
    wide, y = logits.detach().double(), labels.detach().double()
    losses = nn.functional.binary_cross_entropy_with_logits(wide, y, reduction="none")
    root = (wide.sigmoid() * (-wide).sigmoid()).clamp_min(MIN_PROBABILITY).sqrt()
    factor = weight.sqrt()
    upstream = []
    for c in range(logits.shape[1]):
        column = torch.zeros_like(root)
        column[:, c] = root[:, c]
        upstream.append((factor * column).to(logits.dtype))
    residuals = factor * (wide.sigmoid() - y) / root
    return Block(logits, float((weight * losses).sum()), residuals.flatten(), upstream)


def _row_weights(weight: float | Tensor, outputs: Tensor) -> Tensor:
    """Check the weights of the rows, and return them as a float64 tensor ``[M]``."""
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return outputs.new_full((len(outputs),), Real(above=0).read("weight", weight), dtype=torch.float64)
    if weight.shape != outputs.shape[:1] or not bool(((weight > 0) & weight.isfinite()).all()):
        wanted = f"a positive number or a tensor of {len(outputs)} positive numbers"
        raise ValueError(f"weight must be {wanted}, got {_shown(weight)}")
    return weight.detach().double()


class _Decay(Real):
    """Argument kind: a number of at least 0, or a tensor of such numbers."""

    def __init__(self) -> None:
        super().__init__(least=0)

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return super().read(name, value)
        if value.ndim > 1 or not bool(((value >= 0) & value.isfinite()).all()):
            raise ValueError(f"{name} must be a number of at least 0 or a tensor [P] of them, got {_shown(value)}")
        return value


class LevenbergMarquardt(torch.optim.Optimizer):
    """The Levenberg-Marquardt optimizer, for residuals whose row n depends only on row n of the inputs of the model.

    The cost is half the sum of the squares of all residuals. The parameters never move to a point where the cost is
    larger or not finite. If the residuals raise an exception, or a KeyboardInterrupt occurs, the parameters keep the
    values from before the step. For float32 parameters, the Jacobian and the step are computed in float64. While a step
    runs, the parameters change and do not always require a gradient, so other threads should not use the model.

    Args:
        params: a module, or an iterable of parameters. Parameters that do not require a gradient are ignored. All
            parameters must have values, be on one device, and have the dtype float32 or float64. Parameters outside of
            fastkan's layers, ``nn.Linear`` and ``nn.LayerNorm`` may have at most
            ``fastkan_kernels.row_jacobian.MAX_COLUMNS`` elements, because their Jacobian takes one backward pass for
            each element.
        damping: the initial damping, relative to the diagonal of ``J^T J``.
        acceleration: whether to correct each step by geodesic acceleration, which takes one more evaluation of the
            residuals. The correction is not computed if the residuals come from an iterator.
        max_dense: the maximum number of parameters for which a matrix ``[P, P]`` is factorized. With more parameters,
            or if the matrix is too costly for the number of rows, the step is computed by conjugate gradients.
        weight_decay: a factor: half the sum of the squares of all parameters, times this factor, is added to the cost.
            A tensor ``[P]`` has one factor for each element of the parameters.
        verify: whether the first step checks that every row of the residuals depends on only one row of the inputs,
            and that the function of the residuals returns the same values when called again.

    Attributes:
        report: a :class:`Report` on the last step, or None.

    Raises:
        TypeError, ValueError: if an argument is out of range, there are no parameters, or the parameters have several
            devices, no values or an unsupported dtype.

    Example:
        >>> model = KAN(width=[2, 5, 1], grid=5, seed=0, dtype=torch.float64)
        >>> x = torch.rand(1000, 2, dtype=torch.float64)
        >>> y = torch.sin(x.sum(1, keepdim=True))
        >>> optimizer = LevenbergMarquardt(model)
        >>> for _ in range(25):
        ...     cost = optimizer.step(lambda: model(x) - y)
        >>> cost < 1e-3
        True
    """

    report: Report | None = None
    names: list[str] | None = None  # the names of the parameters in error messages
    _rows: int | None = None  # the number of rows of the residuals in the last evaluation
    _gram: Tensor | None = None  # J^T J plus the weight decay, at the start of the last step

    @checked(
        damping=Real(above=0), acceleration=FLAG, max_dense=Int(least=0), weight_decay=_Decay(), verify=FLAG,
    )  # fmt: skip
    def __init__(
        self,
        params: nn.Module | Iterable[Tensor],
        *,
        damping: float = 1e-3,
        acceleration: bool = True,
        max_dense: int = 4096,
        weight_decay: float | Tensor = 0.0,
        verify: bool = True,
    ) -> None:
        named = list(params.named_parameters()) if isinstance(params, nn.Module) else []
        parameters = [each for _, each in named] if isinstance(params, nn.Module) else list(params)
        if any(isinstance(each, dict) for each in parameters):
            raise ValueError("params must be a module or an iterable of tensors, got groups of parameters")
        for each in parameters:
            if not isinstance(each, Tensor):
                raise TypeError(f"params must contain tensors, got {kind_of(each)}")
        parameters = list({id(each): each for each in parameters}.values())  # without repetitions
        parameters = [each for each in parameters if each.requires_grad and each.numel()]
        if not parameters:
            raise ValueError("params must contain at least one parameter that requires a gradient")
        if any(each.is_meta for each in parameters):
            raise ValueError("params must have values, got parameters on meta")
        devices = {str(each.device) for each in parameters}
        if len(devices) > 1:
            raise ValueError(f"params must be on one device, got {', '.join(sorted(devices))}")
        # The options are stored in the group, which copies and pickles of a torch.optim.Optimizer contain.
        count = sum(each.numel() for each in parameters)
        if isinstance(weight_decay, Tensor) and weight_decay.shape != (count,):
            raise ValueError(f"weight_decay must be a number or a tensor [{count}], got {_shown(weight_decay)}")
        options = {"acceleration": acceleration, "max_dense": max_dense, "weight_decay": weight_decay, "verify": verify}
        super().__init__(parameters, {"damping": damping, "growth": 2.0, **options})
        found = {id(each): name for name, each in named}
        self.names = [found[id(each)] for each in parameters] if named else None
        with record_rows(parameters):
            pass  # record_rows checks the dtypes

    @property
    def _parameters(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def step(self, residuals: Callable[[], Any]) -> float:  # type: ignore[override]
        """Make one step and return the cost after the step.

        Args:
            residuals: a function without arguments that returns the residuals: a tensor ``[M]`` or ``[M, C]``, or a
                list or an iterator of such tensors, which may have different numbers of rows. The tensors of an
                iterator are processed one after another, so that memory is needed for only one of them at a time; the
                function is then called again for each product with the Jacobian. The result of :func:`cross_entropy`
                may take the place of each tensor.

        Raises:
            TypeError, ValueError: if the residuals have the wrong type or shape, do not depend on the parameters, or
                are not finite at the current parameters; if a row depends on several rows of the inputs; or if the
                residuals differ when they are computed again.
            RuntimeError: if the residuals differentiate layers by ``torch.func`` or forward-mode differentiation.
        """
        theta = self.flat()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return self._step(theta, residuals)
        except BaseException:  # A KeyboardInterrupt is caught as well, and can occur at any point of a trial.
            self._write(theta)
            raise

    def _step(self, theta: Tensor, residuals: Callable[[], Any]) -> float:
        group = self.param_groups[0]
        model = self._linearized(residuals)
        damping, growth, gain, reached, trial = group["damping"], group["growth"], -math.inf, math.inf, 0
        rounding = torch.finfo(self._parameters[0].dtype).eps
        accepted = False
        # If the slope is 0, the parameters are at a minimum, or have no influence on the residuals.
        while bool(model.slope.any()) and not accepted and trial < MAX_TRIALS and damping <= MAX_DAMPING:
            trial += 1
            delta = model.solve(damping)
            if delta is not None:
                predicted = model.decrease(delta)
                if predicted <= rounding * model.cost:  # The parameters are at a minimum.
                    break
                moved = (
                    delta if not group["acceleration"] else delta + self._acceleration(model, theta, delta, residuals)
                )
                reached = self._cost_at(theta + moved, residuals)
                gain = (model.cost - reached) / predicted if predicted > 0 else -math.inf
                accepted = reached < model.cost and gain > 0
            if accepted:
                damping, growth = max(MIN_DAMPING, damping * max(1 / 3, 1 - (2 * gain - 1) ** 3)), 2.0
            else:
                damping, growth = damping * growth, growth * 2
                self._write(theta)  # Residuals from an iterator are evaluated again for products with the Jacobian.
        if not accepted:
            self._write(theta)
            # The next step starts from a moderate damping again, because the residuals may have changed by then.
            damping, growth = min(damping, 1.0), 2.0
        group["damping"], group["growth"], group["verify"] = damping, growth, False
        cost = reached if accepted else model.cost
        self.report = Report(model.cost, cost, damping, gain, trial, accepted)
        return cost

    def _linearized(self, residuals: Callable[[], Any]) -> _Model:
        """Return the quadratic model of the cost at the current parameters."""
        group = self.param_groups[0]
        if group["verify"]:
            self._check_repetition(residuals)
        with record_rows(self._parameters, self.names) as recording:
            value = residuals()
            streams = not isinstance(value, (Tensor, Block, list, tuple))
            if not streams:
                blocks = list(_read(value))
                self._rows = sum(len(block.outputs) for block in blocks)
            del value
        if streams and self._rows is None:
            self.cost(residuals)
        size = sum(each.numel() for each in self._parameters)
        wanted = MAX_PRODUCTS / size**2
        step = max(1, math.ceil((self._rows or 0) / max(wanted, size)))
        model = _Model(self._parameters[0].device, size, size <= group["max_dense"], step)
        if streams:
            for block, jacobian in self._streamed(residuals):
                model.add(block, jacobian, keep=False)
            model.blocks = partial(self._streamed, residuals)
        else:
            while blocks:  # The graph of a block is freed before the next block is differentiated.
                block = blocks.pop(0)
                model.add(block, recording.jacobian(block.outputs, block.upstream, group["verify"]), keep=True)
        model.add_decay(group["weight_decay"], self.flat())
        self._gram = model.gram if model.is_exact else None
        if not model.rows:
            raise ValueError("residuals returned no tensors")
        if not math.isfinite(model.cost):
            raise ValueError("the residuals are not finite at the current parameters")
        if group["verify"] and model.rows < size and model.decay is None:
            warn(
                f"there are {model.rows} residuals for {size} parameters, so the parameters are not determined by the "
                "residuals",
                UserWarning,
            )
        return model

    def _check_repetition(self, residuals: Callable[[], Any]) -> None:
        """Evaluate the residuals twice.

        Raises:
            ValueError: if the costs differ by more than rounding.
        """
        one, other = self.cost(residuals), self.cost(residuals)
        limit = math.sqrt(torch.finfo(self._parameters[0].dtype).eps)
        if abs(one - other) > limit * (one + other):  # Costs that are not finite are found later.
            raise ValueError(
                f"residuals must return the same values when called again, but the cost was {one:.6g} and then "
                f"{other:.6g}: draw random numbers before the step, turn off dropout, "
                "and return a new iterator in each call"
            )

    def _streamed(self, residuals: Callable[[], Any]) -> Iterator[tuple[Block, RowJacobian]]:
        with record_rows(self._parameters, self.names) as recording:
            for block in _read(residuals()):
                yield block, recording.jacobian(block.outputs, block.upstream, self.param_groups[0]["verify"])

    def _acceleration(
        self, model: _Model, theta: Tensor, delta: Tensor, residuals: Callable[[], Any]
    ) -> Tensor | float:
        """Return half of the geodesic acceleration of a step.

        The result is 0 if the acceleration is too large to be reliable, or if the Jacobian or its matrix is not stored.
        """
        if model.blocks is not None or not model.is_exact:
            return 0.0
        self._write(theta + DIFFERENCE * delta)
        with self._fixed():
            moved = list(_read(residuals()))
        if any(block.upstream is not None for block in moved):
            return 0.0
        slope = torch.zeros_like(delta)
        for block, (before, jacobian) in zip(moved, model.kept):
            change = (block.residuals - before) / DIFFERENCE - jacobian.matvec(delta)
            slope += jacobian.rmatvec(change * (2 / DIFFERENCE))
        acceleration = model.factor_solve(-slope)
        is_small = model.norm(acceleration) <= MAX_ACCELERATION / 2 * model.norm(delta)
        return 0.5 * acceleration if is_small else 0.0  # is_small is False for NaN

    def _cost_at(self, theta: Tensor, residuals: Callable[[], Any]) -> float:
        self._write(theta)
        return self.cost(residuals)

    def cost(self, residuals: Callable[[], Any]) -> float:
        """Return the cost at the current parameters.

        Args:
            residuals: a function as in :meth:`step`.

        Raises:
            TypeError, ValueError: if the residuals have the wrong type or shape.
        """
        cost, self._rows = 0.0, 0
        with torch.inference_mode(False), torch.enable_grad(), self._fixed():
            for block in _read(residuals()):
                cost += block.cost
                self._rows += len(block.outputs)
        return cost + self.decay_cost()

    def decay_cost(self) -> float:
        """Return the part of the cost that ``weight_decay`` adds."""
        decay = self.param_groups[0]["weight_decay"]
        if not isinstance(decay, Tensor) and decay == 0:
            return 0.0
        return 0.5 * float((decay * self.flat().square()).sum())

    def variances(self) -> Tensor | None:
        """Return the diagonal of the inverse of ``J^T J`` plus the weight decay at the start of the last step.

        The result is None if the matrix was not computed from all rows, or is not positive definite.
        """
        if self._gram is None:
            return None
        factor, info = torch.linalg.cholesky_ex(self._gram)
        return None if info else torch.cholesky_inverse(factor).diagonal()

    @contextmanager
    def _fixed(self) -> Iterator[None]:
        """Turn off ``requires_grad`` of the parameters, since residuals may need graphs for the inputs only."""
        trained = [each for each in self._parameters if each.requires_grad]
        try:
            for each in trained:
                each.requires_grad_(False)
            yield
        finally:
            for each in trained:
                each.requires_grad_(True)

    def flat(self) -> Tensor:
        """Return a float64 copy of all parameters as one tensor ``[P]``."""
        return torch.cat([each.detach().flatten().double() for each in self._parameters])

    @torch.no_grad()
    def _write(self, theta: Tensor) -> None:
        sizes = [each.numel() for each in self._parameters]
        for each, values in zip(self._parameters, theta.split(sizes)):
            each.copy_(values.view_as(each))


class _Model:
    """The quadratic model ``cost + slope^T delta + 1/2 delta^T J^T J delta``.

    Args:
        size: the number P of parameters.
        is_dense: whether ``J^T J`` is computed as a matrix.
        step: the matrix, or its diagonal, is computed from every ``step``-th row.
    """

    def __init__(self, device: torch.device, size: int, is_dense: bool, step: int) -> None:
        self.step, self.is_exact = step, is_dense and step == 1
        self.cost, self.rows = 0.0, 0
        self.slope = torch.zeros(size, dtype=torch.float64, device=device)
        self.gram = self.slope.new_zeros(size, size) if is_dense else None
        self.diagonal = torch.zeros_like(self.slope)
        self.kept: list[tuple[Tensor, RowJacobian]] = []
        self.blocks: Callable[[], Iterable[tuple[Block, RowJacobian]]] | None = None
        self.decay: Tensor | None = None  # the weight decay of each parameter
        self._factor: Tensor | None = None
        self._damping = 0.0
        self._image = torch.zeros_like(self.slope)  # J^T J times the result of the last call of solve()

    def add(self, block: Block, jacobian: RowJacobian, keep: bool) -> None:
        """Add a term of the cost."""
        self.cost += block.cost
        self.rows += len(block.residuals)
        if keep:
            jacobian.keep()
            self.kept.append((block.residuals, jacobian))
        self.slope += jacobian.rmatvec(block.residuals)
        rows = slice(0, None, self.step)
        if self.gram is not None:
            self.gram.add_(jacobian.gram(rows), alpha=self.step)
        else:
            self.diagonal.add_(jacobian.gram_diagonal(rows), alpha=self.step)

    def add_decay(self, decay: float | Tensor, theta: Tensor) -> None:
        """Add half the sum of ``decay * theta**2`` to the cost."""
        if not isinstance(decay, Tensor) and decay == 0:
            return
        self.decay = torch.as_tensor(decay, dtype=torch.float64, device=theta.device).expand(len(theta))
        self.cost += 0.5 * float((self.decay * theta.square()).sum())
        self.slope += self.decay * theta
        (self.diagonal if self.gram is None else self.gram.diagonal()).add_(self.decay)

    def scale(self) -> Tensor:
        """Return the diagonal D of the damping.

        No element is smaller than a share of the largest element. The share is the damping, but at most 1, and at least
        ``MIN_SCALE``. It is larger if only some rows are used, which may miss parameters that influence few rows.
        """
        diagonal = self.diagonal if self.gram is None else self.gram.diagonal()
        missed = 0.0 if self.step == 1 else MISSED_ROWS * self.step / self.rows
        share = max(MIN_SCALE, missed, min(1.0, self._damping))
        return diagonal.clamp_min(share * float(diagonal.max()))

    def norm(self, delta: Tensor) -> float:
        """Return the length of a step in units of D."""
        return float((delta * self.scale() * delta).sum()) ** 0.5

    def product(self, delta: Tensor) -> Tensor:
        """Return ``J^T J delta``."""
        if self.is_exact:
            assert self.gram is not None
            return self.gram @ delta
        jacobians = (jacobian for _, jacobian in (self.kept if self.blocks is None else self.blocks()))
        first = torch.zeros_like(delta) if self.decay is None else self.decay * delta
        return sum((each.rmatvec(each.matvec(delta)) for each in jacobians), first)

    def solve(self, damping: float) -> Tensor | None:
        """Return the minimizer of the damped model, or None if rounding makes the matrix not positive definite."""
        self._damping = damping
        scale = self.scale()
        if self.gram is not None:
            matrix = self.gram.clone()
            if not self.is_exact:
                matrix.diagonal().copy_(scale)
            matrix.diagonal().add_(scale, alpha=damping)
            self._factor, info = torch.linalg.cholesky_ex(matrix)
            if info or not bool(self._factor.diagonal().isfinite().all()):
                return None
        if not self.is_exact:
            return self._conjugate_gradients(scale * damping)
        delta = self.factor_solve(-self.slope)
        self._image = self.product(delta)
        return delta

    def factor_solve(self, right: Tensor) -> Tensor:
        """Apply the inverse of the damped matrix, or an approximation of the inverse."""
        if self._factor is None:
            return right / (self.scale() * (1 + self._damping))
        return torch.cholesky_solve(right.unsqueeze(1), self._factor).squeeze(1)

    def decrease(self, delta: Tensor) -> float:
        """Return the decrease of the cost that the model predicts for the result of the last :meth:`solve`."""
        return float(-(self.slope @ delta) - 0.5 * (delta @ self._image))

    def _conjugate_gradients(self, damping: Tensor) -> Tensor:
        """Return an approximate minimizer of the damped model, by preconditioned conjugate gradients."""
        delta, image = torch.zeros_like(self.slope), torch.zeros_like(self.slope)
        residual = -self.slope
        direction = z = self.factor_solve(residual)
        first = rz = float(residual @ z)
        for _ in range(CG_ITERATIONS):
            product = self.product(direction)
            damped = product + damping * direction
            length = rz / float(direction @ damped)
            delta, image = delta + length * direction, image + length * product
            residual = residual - length * damped
            z = self.factor_solve(residual)
            rz, before = float(residual @ z), rz
            if not rz > CG_TOLERANCE**2 * first:
                break
            direction = z + (rz / before) * direction
        self._image = image
        return delta


def _read(value: Any) -> Iterator[Block]:
    """Yield the blocks of the value that a function of residuals has returned.

    Raises:
        TypeError, ValueError: if a block is not a tensor, or has the wrong dtype or shape.
    """
    if isinstance(value, (Tensor, Block)):
        value = (value,)
    elif not hasattr(value, "__iter__"):
        raise TypeError(f"residuals must return a tensor, or tensors in a list, got {kind_of(value)}")
    for block in value:
        if isinstance(block, Block):
            yield block
        elif isinstance(block, Tensor):
            check_residuals(block)
            r = block.detach().double().flatten()
            yield Block(block, 0.5 * float(r @ r), r)
        else:
            raise TypeError(f"residuals must be tensors, got {kind_of(block)}")


def _shown(value: Any) -> str:
    """Return the type of a value in words, with the shape and the dtype of a tensor."""
    return f"{kind_of(value)}, {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
