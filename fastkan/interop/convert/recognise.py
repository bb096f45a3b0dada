"""Whose class a module is: told by module and name, since none of the packages need be there."""

from __future__ import annotations

from enum import Enum

from torch import nn

from .layouts import EFFICIENT_KAN


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


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what ``torch.compile`` returns, which keeps calling the module that it was given."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


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
    from ...kan import KAN
    from ...layers.linear import KANLinear

    return issubclass(cls, (KAN, KANLinear))


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
