"""Layers whose weights are computed: by PyTorch's parametrizations and pruning, and by a hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from fastkan.kan.model import KAN


class Tanh(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


def by_hook(model: KAN) -> None:
    """Let a hook compute a weight from another parameter before each forward."""
    layer = model.layers[0]
    weight = layer.spline_weight
    del layer.spline_weight
    layer.register_parameter("raw", weight)
    layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "spline_weight", layer.raw.tanh()))
    layer.spline_weight = weight.detach().tanh()


COMPUTED: dict[str, Callable[[KAN], Any]] = {
    "parametrization": lambda m: parametrize.register_parametrization(m.layers[0], "spline_weight", Tanh()),
    "parametrized base": lambda m: parametrize.register_parametrization(m.layers[1], "base_weight", Tanh()),
    "pruning": lambda m: prune.l1_unstructured(m.layers[0], "spline_weight", amount=0.5),
    "pruned base": lambda m: prune.l1_unstructured(m.layers[1], "base_weight", amount=0.5),
    "weight made by a hook": by_hook,
}
