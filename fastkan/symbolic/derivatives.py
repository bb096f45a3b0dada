"""Derivatives of a function at each row of its input, and derivatives of a loss with respect to the parameters of a
model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import validation as kinds

from ..training.regularization import MLP_METRICS, REG_METRICS


def check_rows(x: Any, least: int = 0) -> None:
    """Check that ``x`` is a tensor ``[N, in]`` and, if ``least`` is not 0, that ``x`` is finite and has at least
    ``least`` rows."""
    kinds.check_tensor("x", x)
    kinds.check_shape("x", x, ("N", "in"))
    if least:
        kinds.check_finite("x", x)
        if len(x) < least:
            raise ValueError(f"x must have at least {least} rows, got {len(x)}")


@kinds.checked(func=kinds.Callback(), create_graph=kinds.FLAG, mode=kinds.Choice(("scalar", "vector")))
def batch_jacobian(
    func: Callable[[Tensor], Tensor], x: Tensor, create_graph: bool = False, mode: str = "scalar"
) -> Tensor:
    """Compute the first derivatives of a function at every row of x.

    Args:
        func: a function from ``[N, in]`` to ``[N, out]`` or ``[N]`` for which output row n depends only on input row n.
        x: rows ``[N, in]`` at which the derivatives are computed.
        create_graph: whether the result can be differentiated again, with respect to x and the parameters of ``func``.
        mode: ``"scalar"`` for the derivatives of the first output only, ``"vector"`` for the derivatives of all
            outputs.

    Returns:
        The derivatives ``[N, in]`` of the first output or, if ``mode`` is ``"vector"``, the derivatives
        ``[N, out, in]`` of all outputs.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Example:
        >>> batch_jacobian(lambda x: x[:, [0]] * x[:, [1]], torch.tensor([[2.0, 3.0]]))
        tensor([[3., 2.]])
    """
    check_rows(x)

    def total(rows: Tensor) -> Tensor:
        y = func(rows)
        y = y.unsqueeze(1) if y.ndim == 1 else y
        return (y[:, :1] if mode == "scalar" else y).sum(0)

    found = torch.autograd.functional.jacobian(total, x, create_graph=create_graph)
    return found[0] if mode == "scalar" else found.transpose(0, 1)


@kinds.checked(model=kinds.Callback(), create_graph=kinds.FLAG)
def batch_hessian(model: Callable[[Tensor], Tensor], x: Tensor, create_graph: bool = False) -> Tensor:
    """Compute the second derivatives of the first output of a function at every row of x.

    Args:
        model: a function from ``[N, in]`` to ``[N, out]``, as in :func:`batch_jacobian`.
        x: rows ``[N, in]`` at which the derivatives are computed.
        create_graph: whether the result can be differentiated again.

    Returns:
        The second derivatives ``[N, in, in]``.

    Example:
        >>> batch_hessian(lambda x: x[:, [0]] ** 2 * x[:, [1]], torch.tensor([[2.0, 3.0]]))
        tensor([[[6., 4.],
                 [4., 0.]]])
    """
    slope = lambda rows: batch_jacobian(model, rows, create_graph=True)  # noqa: E731
    return batch_jacobian(slope, x, create_graph=create_graph, mode="vector")


def model2param(model: nn.Module) -> Tensor:
    """Concatenate all trained parameters of a model into one vector, in the order of ``model.parameters()``.

    Example:
        >>> model2param(MLP([2, 3, 1])).shape
        torch.Size([13])
    """
    return torch.cat([parameter.reshape(-1) for parameter in model.parameters() if parameter.requires_grad])


@kinds.checked(
    model=kinds.Instance(nn.Module), derivative=kinds.Choice(("jacobian", "hessian")),
    loss_mode=kinds.Choice(("pred", "reg", "all")),
    reg_metric=kinds.Optional(kinds.Choice((*REG_METRICS, *MLP_METRICS))),
    lamb=kinds.REAL, lamb_l1=kinds.REAL, lamb_entropy=kinds.REAL,
)  # fmt: skip
def get_derivative(
    model: Any,
    inputs: Tensor,
    labels: Tensor,
    derivative: str = "hessian",
    loss_mode: str = "pred",
    reg_metric: str | None = None,
    lamb: float = 0.0,
    lamb_l1: float = 1.0,
    lamb_entropy: float = 0.0,
) -> Tensor:
    """Compute the derivatives of a loss with respect to the P trained parameters of a model.

    The parameters are in the order of :func:`model2param`.

    Args:
        model: a KAN or an MLP.
        inputs, labels: inputs ``[N, in]`` and labels ``[N, out]`` on which the loss is computed.
        derivative: ``"jacobian"`` for the gradient, ``"hessian"`` for the second derivatives.
        loss_mode: ``"pred"`` for the mean squared error, ``"reg"`` for the penalty, ``"all"`` for the mean squared
            error plus ``lamb`` times the penalty.
        reg_metric: metric of the penalty, as in the ``fit`` method of the model (default: the default of ``get_reg``).
        lamb, lamb_l1, lamb_entropy: weights of the penalty and of its terms, as in the ``fit`` method of the model.

    Returns:
        The gradient ``[1, P]`` or, if ``derivative`` is ``"hessian"``, the second derivatives ``[1, P, P]``.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Example:
        >>> x = torch.rand(20, 1)
        >>> hessian = get_derivative(MLP([1, 2, 1]), x, x**2)
        >>> hessian.shape, bool((hessian - hessian.mT).abs().max() < 1e-4)
        (torch.Size([1, 7, 7]), True)
    """
    if not hasattr(model, "get_reg"):
        raise TypeError(f"model must be a KAN or an MLP, got {type(model).__name__}")
    kinds.check_tensor("inputs", inputs)
    kinds.check_shape("inputs", inputs, ("N", model.in_features))
    kinds.check_tensor("labels", labels)
    kinds.check_shape("labels", labels, (len(inputs), model(inputs).shape[1]))
    kinds.check_alike(inputs, labels=labels.to(inputs.dtype))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shapes = [model.get_parameter(name).shape for name in names]
    start = model2param(model).detach()

    def penalty() -> Tensor:
        options = {} if reg_metric is None else {"reg_metric": reg_metric}
        return model.get_reg(**options, lamb_l1=lamb_l1, lamb_entropy=lamb_entropy, x=inputs)

    class Loss(nn.Module):
        """A module whose forward computes the loss, so that ``functional_call`` can replace the parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            if loss_mode == "reg":
                return penalty()
            error = (model(inputs) - labels).square().mean()
            return error if loss_mode == "pred" else error + lamb * penalty()

    whole = Loss()

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        replaced = {f"model.{name}": part.view(shape) for name, part, shape in zip(names, parts, shapes)}
        return torch.func.functional_call(whole, replaced, ())

    functional = torch.autograd.functional
    found = functional.jacobian(loss, start) if derivative == "jacobian" else functional.hessian(loss, start)
    return found.unsqueeze(0)
