"""Styles for ``torch.distributed.tensor.parallel.parallelize_module``, which distribute a layer over processes.

>>> # torchrun --nproc-per-node 2
>>> mesh = init_device_mesh("cuda", (2,))  # doctest: +SKIP
>>> plan = {"up": ColwiseParallelKAN(), "down": RowwiseParallelKAN()}
>>> parallelize_module(block, mesh, plan)  # doctest: +SKIP
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from ..functional import forward
from ..layers.conv import KANConv
from ..layers.distributed import local
from ..layers.linear import KANLinear

# The dimensions of the tensors of a layer that belong to the outputs and to the inputs.
OUTPUT_DIMS = {"spline_weight": 2, "base_weight": 1, "spline_scale": 1, "bias": 0, "mask": 1}
INPUT_DIMS = {"spline_weight": 1, "base_weight": 0, "spline_scale": 0, "knots": 0, "mask": 0}


class _ParallelKAN(ParallelStyle):
    """The base class of both styles.

    Each process computes a layer from its own parts of the tensors. An input or output that is a plain tensor is this
    process's part of a distributed tensor, which has the placement that the style specifies.
    """

    dims: dict[str, int]  # The dimension of each tensor that is distributed; the other tensors are replicated.
    needed: Placement  # The placement of the inputs that the parts of a layer need.
    made: Placement  # The placement of the sums that the parts of a layer compute.
    default_output: Placement  # The default placement of the outputs.

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        for name, layout in (("input_layouts", input_layouts), ("output_layouts", output_layouts)):
            if layout is not None and not isinstance(layout, (Replicate, Shard)):
                raise TypeError(f"{name} must be Replicate() or Shard(dim) of torch.distributed.tensor, got {layout!r}")
        self.input_layouts = self.needed if input_layouts is None else input_layouts
        self.output_layouts = self.default_output if output_layouts is None else output_layouts
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, KANLinear) or isinstance(module, KANConv):
            raise NotImplementedError(
                f"{type(self).__name__} distributes a KANLinear, got {type(module).__name__}; for a linear layer use "
                "torch.distributed.tensor.parallel"
            )
        if device_mesh.ndim != 1:
            raise ValueError(
                f"device_mesh must have 1 dimension, such as mesh['tp'], got {device_mesh.ndim} dimensions"
            )
        module._check_own_splines("parallelize_module")

        def distributed(name: str, tensor: Tensor) -> DTensor:
            placement = Shard(self.dims[name]) if name in self.dims else Replicate()
            return distribute_tensor(tensor, device_mesh, [placement], src_data_rank=self.src_data_rank)

        for name, parameter in list(module.named_parameters()):
            part = nn.Parameter(distributed(name, parameter), requires_grad=parameter.requires_grad)
            module.register_parameter(name, part)
        for name in ("knots", "mask"):
            buffer = getattr(module, name)
            if buffer is not None:
                setattr(module, name, distributed(name, buffer))
        module._known.look(local(module.knots))
        module.forward = partial(_forward, module, self)  # type: ignore[method-assign]
        return module

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(input_layouts={self.input_layouts!r}, output_layouts={self.output_layouts!r}, "
            f"use_local_output={self.use_local_output})"
        )


class ColwiseParallelKAN(_ParallelKAN):
    """A style that gives each process a part of the outputs of a :class:`KANLinear`.

    Together with :class:`RowwiseParallelKAN` for the next layer, a pair of layers needs one all-reduce in the forward
    and one in the backward pass. The sizes need not be divisible by the number of processes.

    Args:
        input_layouts: the placement of the inputs, by default ``Replicate()``. Inputs with another placement are
            redistributed.
        output_layouts: the placement of the outputs, by default ``Shard(-1)``.
        use_local_output: whether each process returns its part of the outputs as a plain tensor. Otherwise, it returns
            a ``DTensor``.

    Raises:
        TypeError: if a layout is neither ``Replicate()`` nor a ``Shard``.

    Example:
        >>> ColwiseParallelKAN(output_layouts=Replicate())
        ColwiseParallelKAN(input_layouts=Replicate(), output_layouts=Replicate(), use_local_output=True)
    """

    dims, needed, made, default_output = OUTPUT_DIMS, Replicate(), Shard(-1), Shard(-1)


class RowwiseParallelKAN(_ParallelKAN):
    """A style that gives each process a part of the inputs of a :class:`KANLinear`, whose outputs are then summed.

    Args:
        input_layouts: the placement of the inputs, by default ``Shard(-1)``. Inputs with another placement are
            redistributed.
        output_layouts: the placement of the outputs, by default ``Replicate()``, for which the sums are all-reduced.
            With ``Shard(d)``, the sums are reduced and scattered, for example over the positions of a sequence.
        use_local_output: whether each process returns its part of the outputs as a plain tensor. Otherwise, it returns
            a ``DTensor``.

    Raises:
        TypeError: if a layout is neither ``Replicate()`` nor a ``Shard``.

    Example:
        >>> RowwiseParallelKAN()
        RowwiseParallelKAN(input_layouts=Shard(dim=-1), output_layouts=Replicate(), use_local_output=True)
    """

    dims, needed, made, default_output = INPUT_DIMS, Shard(-1), Partial(), Replicate()


def _forward(layer: KANLinear, style: _ParallelKAN, x: Tensor) -> Tensor:
    """Return the outputs of a layer whose tensors are distributed; see :meth:`KANLinear.forward`."""
    tensors: list[Any] = [layer.spline_weight, layer.base_weight, layer.spline_scale, layer.mask, layer.bias]
    mesh = tensors[0].device_mesh
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise TypeError(f"x must be a torch.Tensor with at least one dimension, got {type(x).__name__}")
    given = x if isinstance(x, DTensor) else _of_parts(x, mesh, style.input_layouts, layer.in_features)
    if given.shape[-1] != layer.in_features:
        raise ValueError(f"x must have the shape [..., in_features={layer.in_features}], got {list(given.shape)}")
    given = given.redistribute(mesh, [_positive(style.needed, x.ndim)])
    # Each process computes the gradient of its own outputs with respect to an input that all processes have.
    gradient = Partial() if style.needed == Replicate() else None
    rows = given.to_local(grad_placements=None if gradient is None else [gradient])

    knots = local(layer.knots)
    basis, pieces = layer._known.basis_and_pieces(knots)
    weight, base_weight, scale, mask = (None if each is None else each.to_local() for each in tensors[:4])
    assert weight is not None
    weight, base_weight = layer._known.checked(knots, basis, weight, base_weight)
    bias, is_bias_of_parts = tensors[4], style.made != Partial()
    own_bias = bias.to_local() if is_bias_of_parts and bias is not None else None
    y = forward(rows, weight, base_weight, scale, mask, own_bias, knots, basis, layer.outside, pieces)

    shape = torch.Size([*given.shape[:-1], layer.out_features])
    made, wanted = _positive(style.made, x.ndim), _positive(style.output_layouts, x.ndim)
    sums = DTensor.from_local(y, mesh, [made], run_check=False, shape=shape, stride=_strides(shape))
    y = sums.redistribute(mesh, [wanted]).to_local()
    if not is_bias_of_parts and bias is not None:  # The bias is added once to the sum over all processes.
        y = y + _local_bias(bias, wanted, x.ndim - 1).to(y.dtype)
    if style.use_local_output:
        return y
    return DTensor.from_local(y, mesh, [wanted], run_check=False, shape=shape, stride=_strides(shape))


def _of_parts(x: Tensor, mesh: DeviceMesh, layout: Placement, features: int) -> DTensor:
    """Return the distributed tensor whose part on this process is x ``[..., in]``."""
    layout = _positive(layout, x.ndim)
    if layout != Shard(x.ndim - 1):
        return DTensor.from_local(x, mesh, [layout], run_check=False)
    shape = torch.Size([*x.shape[:-1], features])
    most = -(-features // mesh.size())  # The first processes have parts of this size.
    own = min(most, max(0, features - most * mesh.get_local_rank()))
    if x.shape[-1] != own:
        raise ValueError(
            f"x must have the shape [..., {own}], the part of in_features={features} that this process has, got "
            f"{list(x.shape)}"
        )
    return DTensor.from_local(x, mesh, [layout], run_check=False, shape=shape, stride=_strides(shape))


def _local_bias(bias: Any, placement: Placement, last: int) -> Tensor:
    """Return the part of the bias that is added to this process's part of the outputs ``[..., out]``."""
    if placement == Shard(last):
        return bias.redistribute(placements=[Shard(0)]).to_local()
    if placement == Replicate():
        return bias.to_local()
    # Each process has the gradient of its own rows only, and the backward pass of redistribute adds them up.
    return bias.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def _positive(placement: Placement, ndim: int) -> Placement:
    """Return a placement whose dimension is counted from the first."""
    return Shard(placement.dim % ndim) if isinstance(placement, Shard) else placement


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
