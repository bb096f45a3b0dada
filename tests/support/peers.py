"""Models of other packages to convert: pykan's and inkan's own, and copies of efficient-kan's, which is a file."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.suite.plain import KANLinear as PlainKANLinear

D = torch.float64


def pykan(width: Sequence = (2, 5, 1), dtype: torch.dtype = D, affine: bool = False, **options: Any) -> Any:
    """A ``MultKAN`` with random parameters and irregular grids."""
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
    """Make an edge of a ``MultKAN`` a formula; with ``keep`` its spline stays."""
    model.fix_symbolic(l, i, j, name, fit_params_bool=False, verbose=False, log_history=False)
    with torch.no_grad():
        model.symbolic_fun[l].affine[j, i] = torch.tensor(row).to(model.symbolic_fun[l].affine)
    if keep:
        model.set_mode(l, i, j, "ns")


def inkan(*widths: int, dtype: torch.dtype = D, **options: Any) -> Any:
    """A ``KANNetwork``, or a ``KANLayer`` if two sizes are given."""
    package = pytest.importorskip("inkan")
    made: dict[str, Any] = {"compile_basis": False, "grid_size": 7, **options}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = package.KANNetwork(list(widths), **made) if len(widths) > 2 else package.KANLayer(*widths, **made)
    return module.to(dtype)


def points(columns: int, rows: int = 64, dtype: torch.dtype = D, seed: int = 0) -> Tensor:
    """Inputs in the grid from -1 to 1 and around it."""
    draw = torch.Generator().manual_seed(seed)
    return (2.6 * torch.rand(rows, columns, generator=draw, dtype=D) - 1.3).to(dtype)


class KANLinear(PlainKANLinear):
    """A copy of efficient-kan's layer, with its names and its arithmetic, as projects hold it."""

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
    """A copy of efficient-kan's network."""

    def __init__(self, widths: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(KANLinear(i, o, **options) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


FORMULAS = [(0, 0, 0, "sin", (2.0, 0.3, 1.5, -0.2)), (0, 1, 2, "x^2", (1.2, 0.1, 0.7, 0.4)),
            (1, 1, 0, "tanh", (0.8, 0.0, 1.1, 0.3))]  # fmt: skip


def with_formulas(**options: Any) -> Any:
    model = pykan(**options)
    for place, (l, i, j, name, row) in enumerate(FORMULAS):
        formula(model, l, i, j, name, row, keep=place == 0)
    return model


def masked(**options: Any) -> Any:
    model = pykan(**options)
    for layer in model.act_fun:
        draw = torch.rand(layer.mask.shape, generator=torch.Generator().manual_seed(2))
        layer.mask.data = (draw > 0.3).to(layer.mask)
    return model


def read_in_part(**options: Any) -> Any:
    """A ``MultKAN`` that reads the columns 3 and 1."""
    model = pykan((2, 3, 1), **options)
    model.input_id = torch.tensor([3, 1])
    return model


SOURCES: dict[str, Callable[..., Any]] = {
    "pykan": pykan,
    "pykan, deep": lambda **o: pykan((2, 3, 3, 2), grid=[3, 5, 4], k=[3, 2, 4], **o),
    "pykan, order 1": lambda **o: pykan(k=1, **o),
    "pykan, order 5": lambda **o: pykan(k=5, grid=6, **o),
    "pykan, identity": lambda **o: pykan(base_fun="identity", **o),
    "pykan, zero": lambda **o: pykan(base_fun="zero", **o),
    "pykan, products": lambda **o: pykan((3, (2, 2), 2), **o),
    "pykan, products of three": lambda **o: pykan((3, (1, 2), 2), mult_arity=3, affine=True, **o),
    "pykan, products of many": lambda **o: pykan((3, (1, 2), (2, 1), 1), mult_arity=[[], [2, 4], [3], []],
                                                 affine=True, **o),
    "pykan, affine maps": lambda **o: pykan((2, 4, 2), affine=True, **o),
    "pykan, masks": masked,
    "pykan, sparse from the start": lambda **o: pykan((3, 5, 2), sparse_init=True, **o),
    "pykan, formulas": with_formulas,
    "pykan, some inputs": read_in_part,
    "pykan, layer": lambda **o: pykan((3, 4), **o).act_fun[0],
    "inkan": lambda **o: inkan(3, 5, 2, **o),
    "inkan, layer": lambda **o: inkan(3, 5, grid_range=(-0.7, 1.2), **o),
    "inkan, fine grid": lambda **o: inkan(3, 2, grid_size=60, **o),
    "inkan, dense": lambda **o: inkan(3, 2, basis_mode="dense", contraction="dense", **o),
    "efficient-kan": lambda dtype: KAN([3, 5, 2]).to(dtype),
    "efficient-kan, layer": lambda dtype: KANLinear(3, 4, 6, 2).to(dtype),
    "efficient-kan, no scale": lambda dtype: KANLinear(3, 4, scaled=False).to(dtype),
    "efficient-kan, gelu": lambda dtype: KANLinear(3, 4, base_activation=nn.GELU).to(dtype),
    "pykan, gelu": lambda **o: pykan(base_fun=nn.GELU(), **o),
    "efficient-kan, identity": lambda dtype: KANLinear(3, 4, base_activation=nn.Identity).to(dtype),
}  # fmt: skip


def columns(source: Any) -> int:
    """Number of columns of a source's input."""
    if hasattr(source, "input_id"):
        return int(source.input_id.max()) + 1
    first = source.layers[0] if hasattr(source, "layers") else source
    for name in ("in_dim", "in_features"):
        if hasattr(first, name):
            return getattr(first, name)
    return first.grid.shape[0]


def value(source: Any, x: Tensor) -> Tensor:
    """Output of a source; pykan's layer returns three more tensors."""
    y = source(x)
    return y[0] if isinstance(y, tuple) else y


def value_and_slope(source: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = value(source, x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=D).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


def close(got: Tensor, expected: Tensor) -> None:
    """Assert equality to 1e-10 of the largest value in float64, to 1e-5 in float32."""
    digits = 1e-10 if expected.dtype == D else 1e-5
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).abs().max()) <= digits * float(expected.abs().max())


def pykan_of(model: Any, arity: int) -> Any:
    """A ``MultKAN`` with the weights of ``model``. (pykan's scores of nodes of several arities raise or are wrong.)"""
    kan = pytest.importorskip("kan")
    theirs = kan.KAN(
        width=copy.deepcopy(model.width), mult_arity=arity, grid=model.grid[0], k=model.k[0], auto_save=False
    ).double()
    for l, (ours, act) in enumerate(zip(model.layers, theirs.act_fun)):
        act.grid.data = ours.knots.clone()
        act.coef.data = ours.spline_weight.detach().permute(1, 2, 0).clone()
        act.scale_base.data = ours.base_weight.detach().clone()
        act.scale_sp.data = ours.spline_scale.detach().clone()
        act.mask.data = torch.ones_like(act.mask) if ours.mask is None else ours.mask.clone()
        for edge, affine in zip(model.symbolic[l].edges, model.symbolic[l].affine):
            on = act.mask.data[edge.i, edge.j].clone()
            theirs.fix_symbolic(l, edge.i, edge.j, edge.name, fit_params_bool=False, verbose=False, log_history=False)
            theirs.symbolic_fun[l].affine.data[edge.j, edge.i] = affine.detach()
            act.mask.data[edge.i, edge.j] = on
        for name in ("node_scale", "node_bias", "subnode_scale", "subnode_bias"):
            getattr(theirs, name)[l].data = getattr(model, name)[l].detach().clone()
    return theirs
