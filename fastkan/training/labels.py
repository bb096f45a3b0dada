"""Conversion of labels to the form that a loss accepts, and a trial call of the loss before a fit changes a network."""

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
DEFAULT_IGNORE_INDEX = -100  # Default of the argument ``ignore_index`` of torch's classification losses.
PAIRED_ROWS = 64  # Number of rows on which ``_is_paired`` tests a loss.
ROUNDING = 100  # Two values of a loss count as equal if their relative difference is at most this multiple of eps.


class Labels:
    """The form of labels that a loss accepts, and the conversion of labels to this form.

    Args:
        loss: function of the prediction and the labels (default: the mean squared error).
        outputs: number of outputs of the network.
        dtype: dtype of the network.

    Attributes:
        takes_classes: whether the loss is torch's cross entropy or negative log likelihood. After
            :meth:`checked_loss` has been called, the attribute is also True if the loss is a function that calls one of
            these two losses of torch.
        ignore_index: class that the cross entropy or the negative log likelihood ignores.
    """

    def __init__(self, loss: Loss | None, outputs: int, dtype: torch.dtype) -> None:
        self.loss, self.outputs, self.dtype = loss, outputs, dtype
        function: Any = loss
        options: dict[str, Any] = {}
        while isinstance(function, partial):
            function, options = function.func, {**function.keywords, **options}
        self.takes_classes = isinstance(function, CLASS_MODULES) or function in CLASS_FUNCTIONS
        self.ignore_index: int = options.get("ignore_index", getattr(function, "ignore_index", DEFAULT_IGNORE_INDEX))
        self.added_column = False  # whether labels [N] have been converted to [N, 1]

    def read(self, name: str, y: Tensor, rows: int) -> Tensor:
        """Return the labels ``y`` in the shape that the loss accepts. Labels that are classes are converted to int64,
        and labels that are values are converted to the dtype of the network.

        Raises:
            ValueError: if the loss would broadcast the labels against the output, or if the network has no output for a
                class.
        """
        output = (rows, self.outputs)
        if self.loss is None:
            y = y.unsqueeze(1) if y.ndim == 1 and self.outputs == 1 else y
            check_shape(name, y, output)
            return y.to(self.dtype)
        if self.takes_classes:
            _check_outputs(self.outputs)
        is_integer = not y.is_floating_point()
        if y.ndim == 1 and self.outputs == 1:
            y, self.added_column = y.unsqueeze(1), True
        if y.shape == output:
            return y.to(self.dtype)
        if is_integer and self.takes_classes and y.shape == (rows, 1):
            y = y[:, 0]
        if is_integer and y.ndim == 1:
            y = y.long()
            if self.takes_classes:
                self.check_classes(name, y)
            return y
        broadcasts = all(1 in sizes or sizes[0] == sizes[1] for sizes in zip(reversed(y.shape), reversed(output)))
        if y.ndim == 1 or broadcasts:
            classes = "; labels that are classes must be integers of the shape [N]" if self.outputs > 1 else ""
            raise ValueError(
                f"{name} has the shape {list(y.shape)}, but the output has {list(output)}, and loss_fn would broadcast "
                f"one against the other: give labels of the output's shape (y.expand(-1, {self.outputs}) for one that "
                f"is for all outputs){classes}"
            )
        return y if is_integer else y.to(self.dtype)

    def check_classes(self, name: str, y: Tensor) -> None:
        """Check that labels, if they are integers ``[N]``, are classes for which the network has an output."""
        if y.is_floating_point() or y.ndim != 1:
            return
        wrong = y[((y < 0) | (y >= self.outputs)) & (y != self.ignore_index)]
        if len(wrong):
            raise ValueError(
                f"{name} must be classes from 0 to {self.outputs - 1}, as the network has {self.outputs} outputs; got "
                f"{int(wrong[0])}"
            )

    def checked_loss(self, prediction: Tensor, y: Tensor) -> Loss | None:
        """Call the loss once with a prediction and labels, as a fit does, and return the loss function.

        Labels that were given as ``[N]`` are usually passed to the loss as ``[N, 1]``. If the loss compares each row
        with its own label for labels ``[N]`` but not for labels ``[N, 1]``, the labels are passed as ``[N]``.

        Raises:
            TypeError, ValueError: if the loss does not return one real number, or if the number does not depend on the
                prediction.

        Warns:
            UserWarning: if the value of the loss does not depend on the assignment of labels to rows.
        """
        if self.loss is None:
            return None
        candidates: list[Loss] = [self.loss]
        if self.added_column:
            candidates.append(partial(_call_without_column, self.loss))
        failure, unpaired = None, []
        for candidate in candidates:
            try:
                self._call(candidate, prediction, y)
            except Exception as error:
                failure = failure or error
                continue
            if _is_paired(candidate, prediction, y):
                return candidate
            unpaired.append(candidate)
        if not unpaired:
            assert failure is not None
            raise failure
        warn(
            "loss_fn gives the same value whichever row a label belongs to: it may compare all rows with all (as [N] "
            "and [N, 1] broadcast), and then a fit finds the labels' mean alone"
        )
        return unpaired[0]

    def _call(self, loss: Loss, prediction: Tensor, y: Tensor) -> None:
        calls = _ClassificationCalls()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), calls:
            value = loss(prediction.detach().requires_grad_(), y)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise TypeError(f"loss_fn must return a tensor with one real number, got {got}")
        if not value.requires_grad:
            raise ValueError("loss_fn must return a value that depends on the prediction, got one without a gradient")
        if calls.ignore_index is not None:
            self.takes_classes, self.ignore_index = True, calls.ignore_index


class _ClassificationCalls(TorchFunctionMode):
    """A mode that records calls of torch's classification losses, and raises an error if a classification loss is
    called on predictions with a single output."""

    ignore_index: int | None = None  # the argument ``ignore_index`` of the last recorded call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CLASS_FUNCTIONS and args and isinstance(args[0], Tensor):
            if args[0].ndim == 2:
                _check_outputs(args[0].shape[1])
            self.ignore_index = kwargs.get("ignore_index", DEFAULT_IGNORE_INDEX)
        return func(*args, **kwargs)


def _check_outputs(outputs: int) -> None:
    if outputs == 1:
        raise ValueError(
            "loss_fn is a loss of classes, which needs an output for each class, but the network has one output: give "
            "it two (width=[..., 2]), or take torch.nn.BCEWithLogitsLoss() and labels of 0 and 1"
        )


def _call_without_column(loss: Loss, prediction: Tensor, y: Tensor) -> Tensor:
    return loss(prediction, y[:, 0])


@torch.no_grad()
def _is_paired(loss: Loss, prediction: Tensor, y: Tensor) -> bool:
    """Whether the value of a loss changes, or may change, when the labels are permuted."""
    p, y = prediction[:PAIRED_ROWS], y[:PAIRED_ROWS]
    permuted = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)]
    if torch.equal(y, permuted) or bool((p == p[:1]).all()):
        return True
    if p.shape == y.shape and y.is_floating_point():
        # The prediction is shifted to the mean of the labels, so that residuals have both signs. If all residuals had
        # the same sign, the mean absolute error would be the same for any order of the labels.
        p = p - p.mean(0) + y.mean(0)
    try:
        with torch.random.fork_rng(devices=[]):
            values = loss(p, y).item(), loss(p, permuted).item()
    except Exception:  # the loss may fail on a part of the rows or without a gradient
        return True
    scale = max(map(abs, values))
    return not abs(values[0] - values[1]) <= ROUNDING * torch.finfo(p.dtype).eps * scale
