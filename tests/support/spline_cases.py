"""Networks whose splines interpolate given functions, and comparisons of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastkan import KAN, KANLinear
from fastkan_kernels.bspline.cox_de_boor import splines


def network(width: Any = (2, 3, 1), **options: Any) -> KAN:
    model = KAN(width=list(width), **{"noise_scale": 3.0, "dtype": torch.float64, **options})
    model.get_act(torch.rand(500, model.in_features, dtype=model.dtype) * 2 - 1)
    return model


def through(layer: KANLinear, i: int, function: Callable[[torch.Tensor], torch.Tensor], j: int = 0) -> None:
    """Let the spline from input i to output j interpolate ``function`` on the grid from -1 to 1."""
    x = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    basis = splines(x.unsqueeze(1), layer.knots[:1], layer.spline_order)[:, :, 0]
    with torch.no_grad():
        layer.spline_scale.fill_(1)
        layer.spline_weight[:, i, j] = torch.linalg.lstsq(basis, function(x), driver="gelsd").solution


def shaped(*functions: Callable[[torch.Tensor], torch.Tensor]) -> KAN:
    """A network of one layer and one output whose splines interpolate these functions."""
    model = KAN(width=[len(functions), 1], grid=40, base_fun="zero", dtype=torch.float64)
    for i, function in enumerate(functions):
        through(model.layers[0], i, function)
    model.get_act(torch.rand(500, len(functions), dtype=torch.float64) * 1.98 - 0.99)
    return model


def state_of(model: KAN) -> dict[str, Any]:
    return model.copy().state_dict()


def assert_same(model: KAN, before: dict[str, Any]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name
