"""Models of other packages to convert: pykan's and inkan's own, and stand-ins for efficient-kan's, which is a file."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.suite.plain import KANLinear as PlainKANLinear

D = torch.float64


def pykan(width: Sequence = (2, 5, 1), dtype: torch.dtype = D, affine: bool = False, **options: Any) -> Any:
    """A ``MultKAN`` whose parameters are all different, on grids of its own."""
    kan = pytest.importorskip("kan")
    options = {"grid": 4, "k": 3, "seed": 0, "auto_save": False, **options}
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        model = kan.KAN(width=[list(each) if isinstance(each, tuple) else each for each in width], **options)
    draw = torch.Generator().manual_seed(5)
    model.to(torch.device("cpu"))
    nn.Module.to(model, dtype)
    with torch.no_grad():
        for layer in model.act_fun:
            for parameter in (layer.coef, layer.scale_base, layer.scale_sp):
                noise = torch.randn(parameter.shape, generator=draw, dtype=D)
                parameter.add_((0.5 * noise / layer.in_dim**0.5).to(dtype))
        if affine:
            for part in (model.node_scale, model.node_bias, model.subnode_scale, model.subnode_bias):
                for parameter in part:
                    parameter.add_((torch.randn(parameter.shape, generator=draw, dtype=D) / 3).to(dtype))
    model.update_grid_from_samples(points(model.width_in[0], 200, dtype, seed=1) * 0.9)
    return model


def formula(model: Any, l: int, i: int, j: int, name: str, row: Sequence[float], keep: bool = False) -> None:
    """Make an edge of a ``MultKAN`` a formula, and with ``keep`` a spline still."""
    model.fix_symbolic(l, i, j, name, fit_params_bool=False, verbose=False, log_history=False)
    with torch.no_grad():
        model.symbolic_fun[l].affine[j, i] = torch.tensor(row).to(model.symbolic_fun[l].affine)
    if keep:
        model.set_mode(l, i, j, "ns")


def inkan(*widths: int, dtype: torch.dtype = D, **options: Any) -> Any:
    """A ``KANNetwork``, or for two sizes a ``KANLayer``."""
    package = pytest.importorskip("inkan")
    made: dict[str, Any] = {"compile_basis": False, "grid_size": 7, **options}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = package.KANNetwork(list(widths), **made) if len(widths) > 2 else package.KANLayer(*widths, **made)
    return module.to(dtype)


def points(columns: int, rows: int = 64, dtype: torch.dtype = D, seed: int = 0) -> Tensor:
    """In the grid from -1 to 1 and around it."""
    draw = torch.Generator().manual_seed(seed)
    return (2.6 * torch.rand(rows, columns, generator=draw, dtype=D) - 1.3).to(dtype)


class KANLinear(PlainKANLinear):
    """What efficient-kan's layer holds, by its names, and what that computes: as in a project that has copied it."""

    def __init__(self, in_features: int, out_features: int, grid_size: int = 5, spline_order: int = 3,
                 scaled: bool = True, base_activation: type[nn.Module] = nn.SiLU) -> None:  # fmt: skip
        super().__init__(in_features, out_features, grid_size, spline_order, dtype=D)
        draw = torch.Generator().manual_seed(in_features + out_features)
        self.grid += 0.3 * self.grid.diff(dim=1).min() * torch.rand(self.grid.shape, generator=draw)
        edges, count = (out_features, in_features), grid_size + spline_order
        self.base_weight = nn.Parameter(torch.randn(edges, generator=draw, dtype=D))
        self.spline_weight = nn.Parameter(torch.randn(*edges, count, generator=draw, dtype=D) / in_features)
        if scaled:
            self.spline_scaler = nn.Parameter(torch.randn(edges, generator=draw, dtype=D))
        self.enable_standalone_scale_spline = scaled
        self.base_activation = base_activation()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spline_weight
        if self.enable_standalone_scale_spline:
            weight = weight * self.spline_scaler.unsqueeze(2)
        base = nn.functional.linear(self.base_activation(x), self.base_weight)
        return base + nn.functional.linear(self.splines(x).flatten(1), weight.flatten(1))


class KAN(nn.Module):
    """efficient-kan's network."""

    def __init__(self, widths: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(KANLinear(i, o, **options) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
