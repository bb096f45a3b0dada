"""Layers whose splines are all off: formulas have taken their places, and no loss reaches their parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .linear import KANLinear


def rest(layer: KANLinear) -> None:
    """Let a layer's parameters ask for no gradient while no edge of it is on.

    A network doesn't call such a layer, and DistributedDataParallel and ``torch.autograd.grad`` refuse parameters that
    ask for a gradient and get none.
    """
    wake(layer)
    if not _is_idle(layer):
        return
    asking = [(name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad]
    for _, parameter in asking:
        parameter.requires_grad_(False)
    layer.resting |= {name for name, _ in asking}


def wake(layer: KANLinear) -> None:
    """Let the parameters that rested ask for gradients again, if an edge is on."""
    if layer.resting and not _is_idle(layer):
        for name in layer.resting:
            layer.get_parameter(name).requires_grad_(True)
        layer.resting = frozenset()


def _is_idle(layer: KANLinear) -> bool:
    return layer.mask is not None and not layer.mask.is_meta and not bool(layer.mask.any())
