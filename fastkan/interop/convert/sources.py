"""Recognise the layers and networks of other packages, and refuse what a converted layer could not compute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import warn

from ...kan import KAN
from ...layers.edge_functions import has_hooks
from ...layers.linear import KANLinear
from .layouts import EFFICIENT_KAN, Layout

AGREE = 1e-4  # relative; what a copy of a class may differ by in float32
NEAR = torch.linspace(-6, 6, 97, dtype=torch.float64)
FAR = torch.tensor([-1e3, -100, -30, -10, 10, 30, 100, 1e3], dtype=torch.float64)


class Kind(Enum):
    """What :func:`fastkan.convert` knows."""

    PYKAN_NETWORK = "pykan's MultKAN"
    PYKAN_LAYER = "pykan's KANLayer"
    EFFICIENT_KAN_NETWORK = "efficient-kan's KAN"
    EFFICIENT_KAN_LAYER = "efficient-kan's KANLinear"
    INKAN_NETWORK = "inkan's KANNetwork"
    INKAN_LAYER = "inkan's KANLayer"

    @property
    def is_network(self) -> bool:
        """Whether it holds layers."""
        return self.name.endswith("NETWORK")

    @property
    def package(self) -> str:
        """Whose it is."""
        return self.value.partition("'")[0]


EXACT = {
    ("kan.MultKAN", "MultKAN"): Kind.PYKAN_NETWORK,
    ("kan.KANLayer", "KANLayer"): Kind.PYKAN_LAYER,
    ("efficient_kan.kan", "KANLinear"): Kind.EFFICIENT_KAN_LAYER,
    ("efficient_kan.kan", "KAN"): Kind.EFFICIENT_KAN_NETWORK,
    ("inkan.layer", "KANLayer"): Kind.INKAN_LAYER,
    ("inkan.network", "KANNetwork"): Kind.INKAN_NETWORK,
}

# no B-splines, so nothing here computes the same
OTHER_FUNCTIONS = {
    "FastKAN": "Gaussian radial basis functions",
    "FastKANLayer": "Gaussian radial basis functions",
    "AttentionWithFastKANTransform": "Gaussian radial basis functions",
    "RadialBasisFunction": "Gaussian radial basis functions",
    "FasterKAN": "reflectional switch functions",
    "FasterKANLayer": "reflectional switch functions",
    "ReLUKANLayer": "products of ReLUs",
    "ChebyKANLayer": "Chebyshev polynomials",
    "JacobiKANLayer": "Jacobi polynomials",
    "NaiveFourierKANLayer": "Fourier series",
}


def kind_of(module: nn.Module) -> Kind | None:
    """What a module is, or None if it is none of these.

    efficient-kan is a file that people copy into their own projects, so its classes count under any module, if
    they hold what its do.

    Raises:
        ValueError: for a KAN layer of functions that aren't B-splines, and for a subclass, whose forward may be
            another.
    """
    found = _named(type(module), module)
    if found is not None:
        return found
    name = type(module).__name__
    if name in OTHER_FUNCTIONS and not _is_own(type(module)):
        raise ValueError(f"{_full(type(module))} is made of {OTHER_FUNCTIONS[name]}: no B-splines compute the same")
    if name == "KANLinear" and not _is_own(type(module)) and not _wraps_known(module):
        raise ValueError(f"{_full(type(module))} doesn't hold what efficient-kan's does, grid and spline_weight")
    if type(module).__module__ == "kan.KAN":
        raise ValueError(f"{_full(type(module))} is of a pykan below 0.2, which keeps its splines in another way")
    for base in type(module).__mro__[1:]:
        if _named(base, module) is not None:
            raise ValueError(f"{_full(type(module))} is a subclass of {_full(base)}, and may compute something else")
    return None


def is_copy(module: nn.Module) -> bool:
    """Whether what it computes has to be compared: efficient-kan is copied and changed, under its own name as well."""
    found = EXACT.get((type(module).__module__, type(module).__name__))
    return found is None or found.package == "efficient-kan"


def _wraps_known(module: nn.Module) -> bool:
    """Whether a module is only named like a layer, and holds one."""
    return any(_named(type(each), each) is not None for each in module.modules() if each is not module)


def _named(cls: type, module: nn.Module) -> Kind | None:
    found = EXACT.get((cls.__module__, cls.__name__))
    if found is not None or _is_own(cls):
        return found
    if cls.__name__ == "KANLinear":
        held = {*module._parameters, *module._buffers}
        return Kind.EFFICIENT_KAN_LAYER if held >= EFFICIENT_KAN.needed else None
    if cls.__name__ == "KAN" and list(module._modules) == ["layers"]:
        held_in = module._modules["layers"]
        layers = list(held_in) if isinstance(held_in, (nn.ModuleList, nn.Sequential)) else []
        of_layers = layers and all(_named(type(layer), layer) is Kind.EFFICIENT_KAN_LAYER for layer in layers)
        return Kind.EFFICIENT_KAN_NETWORK if of_layers else None
    return None


def _is_own(cls: type) -> bool:
    return issubclass(cls, (KAN, KANLinear))


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# -- checks -----------------------------------------------------------------------------------------


def base_of(function: Callable[[Tensor], Tensor], name: str) -> str:
    """The base function that computes what ``function`` does.

    Raises:
        ValueError: if none does, it changes its input, or it has parameters.
    """
    shown = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", function)
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ValueError(f"{name}={shown} has parameters, a base function has none")
    z = torch.cat([NEAR, FAR])
    given = z.clone()
    try:
        values = function(given)
    except Exception as error:
        raise ValueError(f"{name}={shown} can't be called with float64: {error}") from error
    if not torch.equal(given, z):
        raise ValueError(f"{name}={shown} changes its input in place; a base function must leave it")
    for base, expected in (("silu", nn.functional.silu(z)), ("identity", z), ("none", 0 * z)):
        if isinstance(values, Tensor) and values.shape == z.shape and torch.allclose(values, expected, 1e-12, 1e-12):
            return base
    raise ValueError(f"{name}={shown} is none of the base functions silu, identity and zero")


def check_parts(source: nn.Module, parts: Iterable[nn.Module], kind: Kind) -> None:
    """A network is called as it is, and its layers are its package's own."""
    _check_forward(source)
    if is_copy(source) and source._parameters:
        raise ValueError(f"it has the parameter {next(iter(source._parameters))}, which {kind.package}'s has not")
    for place, part in enumerate(parts):
        if kind_of(part) is not kind:
            raise ValueError(f"its layer {place} must be {kind.value}, got a {type(part).__name__}")


def _check_forward(source: nn.Module) -> None:
    if "forward" in source.__dict__:
        raise ValueError("its forward was replaced on the instance, and may compute something else")


def check_tensors(source: nn.Module, layout: Layout) -> None:
    """A layer has the tensors of its package's, is called as it is, and trains what we can train."""
    _check_forward(source)
    held = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    known = layout.needed | layout.optional
    if layout.needed - held.keys():
        raise ValueError(f"it has no {', '.join(sorted(layout.needed - held.keys()))}")
    more = [name for name, _ in source.named_parameters() if name not in known]
    if more:
        raise ValueError(f"it has the parameter {more[0]}, which {layout.package}'s layer has not")
    for name in sorted(known & held.keys() - set(layout.learned.values())):
        if held[name].requires_grad:
            raise ValueError(f"{name} is trained, which it can't be here: {name}.requires_grad_(False) before")
    dtypes = {str(held[name].dtype) for name in layout.learned.values() if name in held}
    if len(dtypes) > 1:
        raise ValueError(f"its parameters must have one dtype, they have {' and '.join(sorted(dtypes))}")


def check_alone(module: nn.Module, sources: dict[str, nn.Module]) -> None:
    """No parameter of a source is in two modules: they would part."""
    inside = {id(each) for source in sources.values() for each in source.modules()}
    first: dict[int, tuple[nn.Module, str]] = {}
    for name, each in module.named_modules():
        for parameter in each._parameters.values():
            if parameter is None:
                continue
            known, known_name = first.setdefault(id(parameter), (each, name))
            if known is not each and (id(each) in inside or id(known) in inside):
                shown = known_name or "module"
                raise ValueError(f"{shown} and {name} share a parameter, which a converted layer could not")


def warn_of_hooks(source: nn.Module) -> None:
    """Those of a source and of its parameters stay with it."""
    for each in source.modules():
        own = each._parameters.values()
        if has_hooks(each) or any(p is not None and p._backward_hooks for p in own):
            warn(f"the hooks of a {type(each).__name__} are left behind")
            return


@torch.no_grad()
def check_same(source: nn.Module, new: nn.Module) -> None:
    """A copied class may have been changed: what both compute must agree, in training and in evaluation mode."""
    first = new.layers[0] if isinstance(new, KAN) else new
    assert isinstance(first, KANLinear)
    if first.spline_weight.dtype.itemsize < 4:  # with the same values, and without the rounding
        source, new = copy.deepcopy(source).double(), copy.deepcopy(new).double()
    like = next(new.parameters())
    low, high = (first.knots.min().item(), first.knots.max().item()) if first.in_features else (-1.0, 1.0)
    unit = torch.rand(64, first.in_features, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
    x = low + (high - low) * unit
    with torch.autocast(x.device.type, enabled=False):
        got = new(x)
        for training in (False, True):
            with _undisturbed(source, training, x.device) as has_drawn:
                try:
                    wanted: Any = source(x.clone())
                except Exception as error:
                    raise ValueError(
                        f"it has the name and tensors of efficient-kan's, but can't be called: {error}"
                    ) from error
                if has_drawn():
                    raise ValueError("it draws random numbers, as for dropout, which a converted layer does not")
            if not (
                isinstance(wanted, Tensor)
                and wanted.shape == got.shape
                and bool((wanted - got).abs().max() <= AGREE * (1 + wanted.abs().max()))
            ):
                mode = " in training mode" if training else ""
                raise ValueError(
                    f"it has the name and the tensors of efficient-kan's, but computes something else{mode}"
                )


@contextmanager
def _undisturbed(source: nn.Module, training: bool, device: torch.device) -> Iterator[Callable[[], bool]]:
    """A source in a mode, and afterwards as it was, with the random generators; yields whether these were used."""
    modules = list(source.modules())
    modes = [each.training for each in modules]
    held = [(each._parameters.copy(), each._buffers.copy()) for each in modules]
    tensors = [t for spaces in held for space in spaces for t in space.values() if t is not None]
    values = [tensor.clone() for tensor in tensors]
    accelerators = [device] if device.type == "cuda" else []

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in accelerators)]

    with torch.random.fork_rng(devices=accelerators):
        before = states()
        try:
            source.train(training)
            yield lambda: not all(map(torch.equal, before, states()))
        finally:
            for each, mode, (parameters, buffers) in zip(modules, modes, held):
                each.training = mode
                each._parameters.update(parameters)
                each._buffers.update(buffers)
            for tensor, value in zip(tensors, values):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
