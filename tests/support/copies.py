"""Layers and networks as projects hold them: copies of efficient-kan's and pykan's classes with changes, under other
names, and pykan 0.0, whose layers store an entry for each edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import peers
import torch
from peers import D
from torch import Tensor, nn
from torch.nn import functional


def named(name: str, *bases: type, **members: Any) -> Any:
    """A class of the given name."""
    return type(name, bases, members)


def bsplines(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """B-splines ``[N, E, M - order - 1]`` of the columns of ``x [N, E]`` on the rows of ``knots [E, M]``."""
    x, t = x.unsqueeze(2), knots.unsqueeze(0)
    values = ((x >= t[..., :-1]) & (x < t[..., 1:])).to(x.dtype)
    for degree in range(1, order + 1):
        rise = (x - t[..., : -degree - 1]) / (t[..., degree:-1] - t[..., : -degree - 1])
        fall = (t[..., degree + 1 :] - x) / (t[..., degree + 1 :] - t[..., 1:-degree])
        values = rise * values[..., :-1] + fall * values[..., 1:]
    return values


def parts(layer: Any, x: Tensor, base: Callable[[Tensor], Tensor] = functional.silu) -> Tensor:
    """The outputs of a layer with efficient-kan's tensors."""
    splines = functional.linear(layer.splines(x).flatten(1), (layer.spline_weight * layer.scale()).flatten(1))
    return splines if layer.base_weight is None else splines + functional.linear(base(x), layer.base_weight)


class Copy(peers.KANLinear):
    """A layer with efficient-kan's tensors that calls its base function in ``forward``."""

    base: Callable[[Tensor], Tensor] = staticmethod(functional.silu)

    def __init__(self, in_features: int = 3, out_features: int = 4, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        del self.base_activation
        self.change()

    def change(self) -> None:
        """Change the tensors and attributes that the constructor of a copy sets otherwise."""

    def scale(self) -> Any:
        return self.spline_scaler.unsqueeze(2) if "spline_scaler" in self._parameters else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return parts(self, x, type(self).base)


def _without_buffer(layer: Any) -> None:
    grid = layer.grid
    del layer.grid
    layer.grid = grid


class OneGrid(Copy):
    """A layer with one row of knots for all inputs."""

    def change(self) -> None:
        self.grid = -2.2 + 0.4 * torch.arange(12, dtype=D)

    def splines(self, x: Tensor) -> Tensor:
        return bsplines(x, self.grid.expand(x.shape[1], -1), 3)


def _with_bias(layer: Any) -> None:
    layer.bias = nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(8), dtype=D))


class Grouped(nn.Module):
    """convkan's layer with one group of channels: all tensors, the inputs and the outputs have a first dimension."""

    def __init__(self) -> None:
        super().__init__()
        made = Copy()
        self.register_buffer("grid", made.grid.unsqueeze(0))
        for name in ("base_weight", "spline_weight", "spline_scaler"):
            setattr(self, name, nn.Parameter(getattr(made, name).detach().unsqueeze(0)))

    def forward(self, x: Tensor) -> Tensor:
        (x,) = x
        scaled = (self.spline_weight * self.spline_scaler.unsqueeze(3))[0]
        y = functional.linear(functional.silu(x), self.base_weight[0])
        return (y + functional.linear(bsplines(x, self.grid[0], 3).flatten(1), scaled.flatten(1))).unsqueeze(0)


class Plural(nn.Module):
    """A layer with names of its own, whose knots are a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        made = Copy()
        self.knots = made.grid.clone()
        self.base_weights, self.spline_weights, self.spline_scales = (
            made.base_weight, made.spline_weight, made.spline_scaler,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spline_weights * self.spline_scales.unsqueeze(2)
        base = functional.linear(functional.gelu(x), self.base_weights)
        return base + functional.linear(bsplines(x, self.knots, 3).flatten(1), weight.flatten(1))


class Inner(nn.Module):
    """A layer with efficient-kan's names, but weights ``[in, out, ...]``, and knots of the grid alone."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.grid = nn.Parameter(torch.linspace(-1, 1, 6, dtype=D).repeat(3, 1), requires_grad=False)
        self.base_weight = nn.Parameter(torch.randn(3, outputs, generator=draw, dtype=D))
        self.spline_weight = nn.Parameter(torch.randn(3, outputs, 7, generator=draw, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        step = 0.4 * torch.arange(1, 3, dtype=D)
        knots = torch.cat([self.grid[:, :1] - step.flip(0), self.grid, self.grid[:, -1:] + step], 1)
        return functional.silu(x) @ self.base_weight + torch.einsum(
            "nik,iok->no", bsplines(x, knots, 2).view(-1, 3, 7), self.spline_weight
        )


class Dropped(Copy):
    """A layer with dropout on its inputs."""

    rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return parts(self, functional.dropout(x, self.rate, self.training))


class Graph(Copy):
    """A layer that keeps the outputs of its last call."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = [parts(self, x)]
        return self.last[0]


class Tokens(Copy):
    """A layer that takes ``[B, T, in]`` alone."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, columns = x.shape
        return parts(self, x.reshape(-1, columns)).view(batch, tokens, -1)


# Copies that compute what a KANLinear computes, by the name that describes the change.
COPIES: dict[str, Callable[[], nn.Module]] = {
    "renamed to KANLayer": lambda: named("KANLayer", Copy)(),
    "EfficientKANLinear": lambda: named("EfficientKANLinear", Copy)(),
    "subclass with another constructor": lambda: named("Own", peers.KANLinear, __init__=lambda self: (
        peers.KANLinear.__init__(self, 3, 4, 6, 2)))(),
    "subclass with more methods": lambda: named("Own", peers.KANLinear, size=lambda self: 3)(3, 4),
    "dropout of 0": lambda: named("DropKANLinear", Dropped)(),
    "no scale": lambda: Copy(scaled=False),
    "no base": lambda: named("KANLinear", Copy, change=lambda self: setattr(self, "base_weight", None))(),
    "identity, called in forward": lambda: named("KANLinear", Copy, base=staticmethod(lambda x: x))(),
    "base as a string": lambda: named("KANLinear", Copy, change=lambda self: setattr(
        self, "base_activation", "silu"))(),
    "base as a class": lambda: named("KANLinear", Copy, change=lambda self: setattr(
        self, "base_activation", nn.SiLU))(),
    "base in another attribute": lambda: named("KANLinear", Copy, change=lambda self: setattr(
        self, "act", nn.SiLU()))(),
    "knots as an attribute": lambda: named("KANLinear", Copy, change=_without_buffer)(),
    "knots of one row": lambda: named("KANLinear", OneGrid)(),
    "bias": lambda: named("KANLinear", Copy, change=_with_bias, forward=lambda self, x: parts(self, x) + self.bias)(),
    "names of its own": Plural,
    "inner knots": Inner,
    "inner knots, as many outputs as inputs": lambda: Inner(3),
    "tokens": lambda: named("KANLinear", Tokens)(),
    "one group": lambda: named("KANLinear", Grouped)(),
    "keeps a graph": lambda: named("KANLinear", Graph)(),
}  # fmt: skip


def one_output(cls: type) -> Any:
    """The class of a layer of pykan that returns its outputs alone."""
    return named("KANLayer", cls, forward=lambda self, x: cls.forward(self, x)[0])


# -- pykan 0.0 ------------------------------------------------------------------------------------------


class OldLayer(nn.Module):
    """A layer of pykan 0.0: edge ``o * in + i`` leads from input i to output o, and the knots are those of the grid."""

    def __init__(self, in_dim: int, out_dim: int, num: int = 5, k: int = 3, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        edges = in_dim * out_dim
        self.in_dim, self.out_dim, self.k, self.grid_eps, self.base_fun = in_dim, out_dim, k, 1.0, nn.SiLU()
        inner = torch.linspace(-1, 1, num + 1, dtype=D).repeat(in_dim, 1)
        inner = (inner + 0.1 * torch.rand(inner.shape, generator=draw, dtype=D)).sort(1).values
        self.grid = nn.Parameter(inner.repeat(out_dim, 1), requires_grad=False)
        self.mask = nn.Parameter((torch.rand(edges, generator=draw) > 0.2).to(D), requires_grad=False)
        for name, shape in (("coef", (edges, num + k)), ("scale_base", (edges,)), ("scale_sp", (edges,))):
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=draw, dtype=D)))
        self.weight_sharing = torch.arange(edges)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        each = x.repeat(1, self.out_dim)
        grid, coef = self.grid[self.weight_sharing], self.coef[self.weight_sharing]
        step = (grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1)
        beyond = step * torch.arange(1, self.k + 1)
        knots = torch.cat([grid[:, :1] - beyond.flip(1), grid, grid[:, -1:] + beyond], 1)
        spline = (bsplines(each, knots, self.k) * coef).sum(2)
        values = self.mask * (self.scale_base * self.base_fun(each) + self.scale_sp * spline)
        edges = values.view(len(x), self.out_dim, self.in_dim)
        return edges.sum(2), each, edges, spline


class OldFormulas(nn.Module):
    """The formulas of a layer of pykan 0.0."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(out_dim, in_dim, dtype=D), requires_grad=False)
        self.affine = nn.Parameter(torch.zeros(out_dim, in_dim, 4, dtype=D))
        self.funs: Any = [[torch.zeros_like] * in_dim for _ in range(out_dim)]
        self.funs_name = [[""] * in_dim for _ in range(out_dim)]

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.affine.unbind(2)
        z = a * x.unsqueeze(1) + b
        values = torch.stack([
            torch.stack([fun(z[:, j, i]) for i, fun in enumerate(row)], 1) for j, row in enumerate(self.funs)
        ], 1)  # fmt: skip
        return (self.mask * (c * values + d)).sum(2)


class OldKAN(nn.Module):
    """A network of pykan 0.0, which keeps the values of its nodes."""

    def __init__(self, width: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        sizes = list(itertools.pairwise(width))
        self.act_fun = nn.ModuleList(OldLayer(i, o, seed=seed + place) for place, (i, o) in enumerate(sizes))
        self.symbolic_fun = nn.ModuleList(OldFormulas(i, o) for i, o in sizes)
        self.biases = nn.ModuleList(nn.Linear(o, 1, bias=False, dtype=D) for _, o in sizes)
        self.symbolic_enabled = True

    def fix(self, l: int, i: int, j: int, name: str, fun: Callable, row: Sequence[float]) -> None:
        """Make an edge a formula."""
        formulas, layer = self.symbolic_fun[l], self.act_fun[l]
        formulas.mask.data[j, i], layer.mask.data[j * layer.in_dim + i] = 1, 0
        formulas.funs[j][i], formulas.funs_name[j][i] = fun, name
        formulas.affine.data[j, i] = torch.tensor(row, dtype=D)

    def train(self, dataset: Any) -> Any:  # type: ignore[override]
        raise AssertionError("the method trains the network, as in pykan 0.0")

    def forward(self, x: Tensor) -> Tensor:
        self.acts = [x]
        for layer, formulas, bias in zip(self.act_fun, self.symbolic_fun, self.biases):
            y = layer(self.acts[-1])[0]
            self.acts.append((y + formulas(self.acts[-1]) if self.symbolic_enabled else y) + bias.weight)
        return self.acts[-1]
