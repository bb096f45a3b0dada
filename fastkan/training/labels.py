"""Labels in the form that a loss needs, and a first call of that loss, before a fit changes anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastkan_kernels import check_shape, kind_of, warn

Loss = Callable[[Tensor, Tensor], Tensor]
CLASS_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)
CLASS_FUNCTIONS = (functional.cross_entropy, functional.nll_loss)
IGNORED = -100  # torch's default of ignore_index
PAIRED_ROWS = 64  # enough to see whether a loss compares each row with its own label
ROUNDING = 100  # times eps: values that differ by less are the same


class Labels:
    """The labels of a network, brought into one form.

    Args:
        loss: of prediction and label; None is the mean squared error.
        outputs: of the network.
        dtype: of the network.

    Attributes:
        classes: whether the loss takes classes: torch's cross entropy or negative log likelihood, also within a
            function of the caller's once :meth:`settled` has called it.
    """

    def __init__(self, loss: Loss | None, outputs: int, dtype: torch.dtype) -> None:
        self.loss, self.outputs, self.dtype = loss, outputs, dtype
        known: Any = loss
        options: dict[str, Any] = {}
        while isinstance(known, partial):
            known, options = known.func, {**known.keywords, **options}
        self.classes = isinstance(known, CLASS_MODULES) or known in CLASS_FUNCTIONS
        self.ignored: int = options.get("ignore_index", getattr(known, "ignore_index", IGNORED))
        self.flat = False  # whether labels came as [N] and became [N, 1]

    def read(self, name: str, y: Tensor, rows: int) -> Tensor:
        """``y`` with the shape and the kind of numbers that the loss takes, and the dtype of the network where they are
        values.

        Raises:
            ValueError: for labels that a loss would broadcast against the output, and for classes that the network has
                no output for.
        """
        output = (rows, self.outputs)
        if self.loss is None:
            y = y.unsqueeze(1) if y.ndim == 1 and self.outputs == 1 else y
            check_shape(name, y, output)
            return y.to(self.dtype)
        if self.classes:
            _check_outputs(self.outputs)
        whole = not y.is_floating_point()
        if y.ndim == 1 and self.outputs == 1:
            y, self.flat = y.unsqueeze(1), True
        if y.shape == output:
            return y.to(self.dtype)
        if whole and self.classes and y.shape == (rows, 1):
            y = y[:, 0]
        if whole and y.ndim == 1:
            y = y.long()
            if self.classes:
                self.check_classes(name, y)
            return y
        if y.ndim == 1 or _broadcasts(y.shape, output):
            classes = "; labels that are classes must be integers of the shape [N]" if self.outputs > 1 else ""
            raise ValueError(
                f"{name} has the shape {list(y.shape)}, but the output has {list(output)}, and loss_fn would broadcast "
                f"one against the other: give labels of the output's shape (y.expand(-1, {self.outputs}) for one that "
                f"is for all outputs){classes}"
            )
        return y if whole else y.to(self.dtype)

    def check_classes(self, name: str, y: Tensor) -> None:
        """Integers are classes that the network has an output for; a ValueError names one that is not."""
        if y.is_floating_point() or y.ndim != 1:
            return
        wrong = y[((y < 0) | (y >= self.outputs)) & (y != self.ignored)]
        if len(wrong):
            raise ValueError(
                f"{name} must be classes from 0 to {self.outputs - 1}, as the network has {self.outputs} outputs; got "
                f"{int(wrong[0])}"
            )

    def settled(self, prediction: Tensor, y: Tensor) -> Loss | None:
        """The loss, called once as a fit will; it gets labels that came as ``[N]`` in that shape where it can only
        compare these row by row.

        Raises:
            TypeError, ValueError: for a loss that returns no real number, or none that depends on the prediction.

        Warns:
            UserWarning: where the value is the same whichever row a label belongs to.
        """
        if self.loss is None:
            return None
        ways: list[Loss] = [self.loss, partial(_without_column, self.loss)] if self.flat else [self.loss]
        failure, able = None, []
        for way in ways:
            try:
                self._call(way, prediction, y)
            except Exception as error:
                failure = failure or error
                continue
            if _is_paired(way, prediction, y):
                return way
            able.append(way)
        if not able:
            assert failure is not None
            raise failure
        warn(
            "loss_fn gives the same value whichever row a label belongs to: it may compare all rows with all (as [N] "
            "and [N, 1] broadcast), and then a fit finds the labels' mean alone"
        )
        return able[0]

    def _call(self, loss: Loss, prediction: Tensor, y: Tensor) -> None:
        seen = _Classes()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), seen:
            value = loss(prediction.detach().requires_grad_(), y)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise TypeError(f"loss_fn must return a tensor with one real number, got {got}")
        if not value.requires_grad:
            raise ValueError("loss_fn must return what depends on the prediction, but its value has no gradient")
        if seen.ignored is not None:
            self.classes, self.ignored = True, seen.ignored


class _Classes(TorchFunctionMode):
    """Notes a call of a loss of classes, and refuses one for a single output."""

    ignored: int | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CLASS_FUNCTIONS and args and isinstance(args[0], Tensor):
            if args[0].ndim == 2:
                _check_outputs(args[0].shape[1])
            self.ignored = kwargs.get("ignore_index", IGNORED)
        return func(*args, **kwargs)


def _check_outputs(outputs: int) -> None:
    if outputs == 1:
        raise ValueError(
            "loss_fn is a loss of classes, which needs an output for each class, but the network has one output: give "
            "it two (width=[..., 2]), or take torch.nn.BCEWithLogitsLoss() and labels of 0 and 1"
        )


def _broadcasts(one: torch.Size, other: tuple[int, ...]) -> bool:
    try:
        torch.broadcast_shapes(one, other)
    except RuntimeError:
        return False
    return True


def _without_column(loss: Loss, prediction: Tensor, y: Tensor) -> Tensor:
    return loss(prediction, y[:, 0])


@torch.no_grad()
def _is_paired(loss: Loss, prediction: Tensor, y: Tensor) -> bool:
    """Whether the value depends on which row a label belongs to; True where that can't be seen."""
    p, y = prediction[:PAIRED_ROWS], y[:PAIRED_ROWS]
    other = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)]
    if torch.equal(y, other) or bool((p == p[:1]).all()):
        return True
    if p.shape == y.shape and y.is_floating_point():  # residuals of one sign alone would have one sum in any order
        p = p - p.mean(0) + y.mean(0)
    try:
        with torch.random.fork_rng(devices=[]):
            values = loss(p, y).item(), loss(p, other).item()
    except Exception:  # a loss that needs all rows, or a gradient
        return True
    scale = max(map(abs, values))
    return not abs(values[0] - values[1]) <= ROUNDING * torch.finfo(p.dtype).eps * scale
