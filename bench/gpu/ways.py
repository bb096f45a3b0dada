"""The ways of the Triton backend, made to be taken: fused, chunked, gather; and its candidates for tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from fastkan_kernels import Basis
from fastkan_kernels.backends.triton.config import WAYS
from fastkan_kernels.basis import autocast_dtype
from fastkan_kernels.trilinear import Operands

from .place import Place

__all__ = ["WAYS", "NoSuchWay", "available", "candidates", "forced", "key_of", "of_layer", "of_way"]


class NoSuchWay(Exception):
    """A contraction that a way is not made for."""


def key_of(name: str, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int) -> Any:
    """What the backend's choice for these operands depends on, a ``key.Key``; and the GPU's capability."""
    from fastkan_kernels.backends.triton.key import key
    from fastkan_kernels.backends.triton.problem import problem

    product = autocast_dtype(x)
    if product is not None:
        basis = basis._replace(matmul_dtype=product)
    found = problem(name, x, knots, slots, basis, derivative)
    return key(found), found.capability


def candidates(name: str, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int) -> list[Any]:
    """Configurations worth trying, the one in force first: each a ``config.Config``."""
    from fastkan_kernels.backends.triton import rules, selection

    key, capability = key_of(name, x, knots, slots, basis, derivative)
    chosen = selection.choose(key, capability, x.device)
    return list(dict.fromkeys([chosen, *rules.candidates(key, capability)]))


def of_way(way: str, name: str, x: Tensor, knots: Tensor, slots: Operands, basis: Basis, derivative: int) -> Any:
    """The first candidate of a way.

    Raises:
        NoSuchWay: if there is none.
    """
    for config in candidates(name, x, knots, slots, basis, derivative):
        if config.way == way:
            return config
    raise NoSuchWay(f"{name}_{derivative} has no {way} way")


@contextmanager
def forced(configs: dict[str, Any]) -> Iterator[None]:
    """Take these configurations, by contraction; in a backward too."""
    from fastkan_kernels.backends.triton import selection

    with ExitStack() as stack:
        for name, config in configs.items():
            stack.enter_context(selection.override(name, config))
        yield


def of_layer(way: str, layer: Any, x: Tensor, upstream: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Configurations by which a layer's contractions take a way; those that it is not made for go as they would.

    Raises:
        NoSuchWay: if the GPU or the dtype is not one for it.
    """
    weights = {"weight": layer.spline_weight, "base_weight": layer.base_weight}
    operands = {
        "F": (Operands(**weights), 0),
        "G": (Operands(g=upstream), 0),
        "H": (Operands(**weights, g=upstream), 1),
    }
    found = {}
    for name in names:
        slots, derivative = operands[name]
        if name not in WAYS[way]:
            continue
        found[name] = of_way(way, name, x, layer.knots, slots, layer.basis, derivative)
    return found


def available(place: Place) -> bool:
    """Whether the backend of ``place`` has ways to choose from."""
    return place.backend == "triton"
