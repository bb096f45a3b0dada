"""Who takes part in a row: matrix products alone, layers of others, and each way of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..measure import Task
from ..suite.contenders import CONTENDERS
from ..suite.plain import KANLinear as PlainKANLinear
from . import ways
from .accuracy import Material
from .place import Place
from .rows import Row
from .settings import DTYPES, Kind, kind

GEMM, LINEAR, PLAIN, COMPILED, INKAN = "gemm", "linear", "plain", "plain, compiled", "inkan, compiled"
AUTO = "auto"  # ours, as it comes
ANCHORS = (GEMM, LINEAR, PLAIN, COMPILED, AUTO)
OURS = (AUTO, *ways.WAYS)


class Subject:
    """A network with a row's input and upstream gradient.

    Args:
        within: where its calls take place.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        upstream: Tensor,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.network, self.upstream, self.within = network, upstream, within
        self.x = x.detach().clone().requires_grad_()
        self.parameters = list(network.parameters())

    def forward(self) -> Tensor:
        with self.within(), torch.no_grad():
            return self.network(self.x)

    def step(self) -> None:
        with self.within():
            self.network(self.x).backward(self.upstream)

    def clear(self) -> None:
        """As ``zero_grad`` does, and the input's."""
        for tensor in (self.x, *self.parameters):
            tensor.grad = None

    def task(self, mode: str) -> Task:
        return Task(getattr(self, mode), self.clear)

    def found(self, mode: str) -> dict[str, Tensor]:
        """Its output and, for a step, what gradients it has in the layout of ``accuracy.Truth``."""
        with self.within():
            y = self.network(self.x)
            if mode == "forward":
                return {"y": y.detach()}
            y.backward(self.upstream)
        found = {"y": y.detach(), "dx": cast(Tensor, self.x.grad)}
        layer = getattr(self.network, "layer", self.network)
        layer = getattr(layer, "_orig_mod", layer)  # of a compiled one
        if isinstance(layer, PlainKANLinear):
            found |= {"dw": layer.spline_weight.grad.permute(2, 1, 0), "db": layer.base_weight.grad.t()}  # type: ignore[union-attr]
        elif hasattr(layer, "spline_weight"):
            found |= {"dw": layer.spline_weight.grad, "db": layer.base_weight.grad}
        self.clear()
        return found


class Products:
    """The layer's matrix products alone, on features that are there: one, or in a step all three."""

    def __init__(self, psi: Tensor, weight: Tensor, upstream: Tensor) -> None:
        self.psi, self.weight, self.upstream = psi, weight, upstream

    def forward(self) -> None:
        self.psi @ self.weight

    def step(self) -> None:
        self.psi @ self.weight
        self.psi.t() @ self.upstream
        self.upstream @ self.weight.t()

    def task(self, mode: str) -> Task:
        return Task(getattr(self, mode))


class Rounded(nn.Module):
    """A layer with two-byte weights whose splines are made in float32, as autocast does it: a grid in
    two bytes would be no grid."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.layer(x)


class Contestant(NamedTuple):
    """A name, and how to make what it names; ``make`` raises ``Absent`` where there is no such thing."""

    name: str
    make: Callable[[], Any]

    @property
    def is_ours(self) -> bool:
        return self.name in OURS


class Absent(Exception):
    """Why a contestant sits a row out."""


def contestants(row: Row, material: Material, place: Place) -> list[Contestant]:
    """Of a row, anchors first."""
    to = kind(row.dtype, place.device)

    def products() -> Products:
        psi = torch.rand(row.rows, row.wide, **to)
        return Products(psi, torch.randn(row.wide, row.outputs, **to), material.upstream)

    def linear() -> Subject:
        network = nn.Linear(row.wide, row.outputs, bias=False, **to)
        return Subject(network, torch.rand(row.rows, row.wide, **to), material.upstream)

    found = [Contestant(GEMM, products), Contestant(LINEAR, linear)]
    if row.rivals:
        found.append(Contestant(PLAIN, lambda: _subject(_plain(row, material, to), row, material)))
        found.append(Contestant(COMPILED, lambda: _compiled(_plain(row, material, to), row, material, place)))
        found.append(Contestant(INKAN, lambda: _inkan(row, material, to, place)))
    found.append(Contestant(AUTO, lambda: Subject(_layer(row, place), material.x, material.upstream, place.ours)))
    if ways.available(place):
        for way in ways.WAYS:
            found.append(Contestant(way, lambda way=way: _by_way(way, row, material, place)))  # type: ignore[misc]
    return found


def _built(name: str, row: Row) -> nn.Module:
    """The one layer of a rival of ``bench.suite``, on the CPU in float32."""
    rival = next(contender for contender in CONTENDERS if contender.name == name)
    reason = rival.why_not(row.case)
    if reason is not None:
        raise Absent(reason)
    return rival.make(row.case)


def _layer(row: Row, place: Place) -> nn.Module:
    return cast(nn.Sequential, _built("fastkan", row))[0].to(place.device, DTYPES[row.dtype])


def _by_way(way: str, row: Row, material: Material, place: Place) -> Subject:
    layer = _layer(row, place)
    try:
        names = "F" if row.mode == "forward" else "FGH"
        configs = ways.of_layer(way, layer, material.x, material.upstream, names)
    except ways.NoSuchWay as reason:
        raise Absent(str(reason)) from None

    @contextmanager
    def within():
        with ExitStack() as stack:
            stack.enter_context(place.ours())
            stack.enter_context(ways.forced(configs))
            yield

    return Subject(layer, material.x, material.upstream, within)


def _plain(row: Row, material: Material, to: Kind) -> nn.Module:
    return _rounded(PlainKANLinear(row.inputs, row.outputs, row.grid).load(*material.edges), to)


def _rounded(layer: nn.Module, to: Kind) -> nn.Module:
    """The layer with its parameters in a dtype and its grid as it is."""
    layer = layer.to(to["device"])
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(to["dtype"])
    return layer


def _subject(layer: nn.Module, row: Row, material: Material) -> Subject:
    dtype = DTYPES[row.dtype]
    return Subject(Rounded(layer, dtype) if dtype.itemsize < 4 else layer, material.x, material.upstream)


def _compiled(layer: nn.Module, row: Row, material: Material, place: Place) -> Subject:
    if not place.is_gpu:
        raise Absent("not compiled in a rehearsal")
    return _subject(cast(nn.Module, torch.compile(layer, dynamic=False)), row, material)


def _inkan(row: Row, material: Material, to: Kind, place: Place) -> Subject:
    return _compiled(_rounded(_built("inkan", row), to), row, material, place)
