"""Recognition of the layers and networks of other packages, and checks that a converted module can compute the same
function.

Classes are recognised by the names of their Python module and of the class, because the packages need not be installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import warn

from ...kan import KAN
from ...layers.edge_functions import has_hooks
from ...layers.linear import KANLinear
from .layouts import EFFICIENT_KAN, Layout

CLAIM = "it has the name and tensors of an efficient-kan module"
MAX_DIFFERENCE = 1e-4  # Maximum relative difference at which two float32 outputs count as equal.
NEAR_POINTS = torch.linspace(-6, 6, 97, dtype=torch.float64)
FAR_POINTS = torch.tensor([-1e3, -100, -30, -10, 10, 30, 100, 1e3], dtype=torch.float64)


class SourceKind(Enum):
    """The classes that :func:`fastkan.convert` converts."""

    PYKAN_NETWORK = "pykan's MultKAN"
    PYKAN_LAYER = "pykan's KANLayer"
    EFFICIENT_KAN_NETWORK = "efficient-kan's KAN"
    EFFICIENT_KAN_LAYER = "efficient-kan's KANLinear"
    INKAN_NETWORK = "inkan's KANNetwork"
    INKAN_LAYER = "inkan's KANLayer"

    @property
    def is_network(self) -> bool:
        """Whether the class is a network, which contains layers."""
        return self.name.endswith("NETWORK")

    @property
    def package(self) -> str:
        """The name of the package."""
        return self.value.partition("'")[0]


CLASSES = {
    ("kan.MultKAN", "MultKAN"): SourceKind.PYKAN_NETWORK,
    ("kan.KANLayer", "KANLayer"): SourceKind.PYKAN_LAYER,
    ("efficient_kan.kan", "KANLinear"): SourceKind.EFFICIENT_KAN_LAYER,
    ("efficient_kan.kan", "KAN"): SourceKind.EFFICIENT_KAN_NETWORK,
    ("inkan.layer", "KANLayer"): SourceKind.INKAN_LAYER,
    ("inkan.network", "KANNetwork"): SourceKind.INKAN_NETWORK,
}

# Classes whose edges are not B-splines, with a description of the edges. No fastkan layer can compute the functions of
# these classes.
OTHER_BASES = {
    **dict.fromkeys(
        ("FastKAN", "FastKANLayer", "AttentionWithFastKANTransform", "RadialBasisFunction"),
        "Gaussian radial basis functions",
    ),
    **dict.fromkeys(("FasterKAN", "FasterKANLayer"), "reflectional switch functions"),
    "ReLUKANLayer": "products of ReLUs",
    "ChebyKANLayer": "Chebyshev polynomials",
    "JacobiKANLayer": "Jacobi polynomials",
    "NaiveFourierKANLayer": "Fourier series",
}


def source_kind(module: nn.Module) -> SourceKind | None:
    """Return the class of a module as a :class:`SourceKind`, or None if the module need not be converted.

    The package efficient-kan is a single file that is often copied into other projects. The class names of
    efficient-kan are therefore accepted from any Python module, if the instance has the parameters of efficient-kan's
    class.

    Raises:
        ValueError: if the module is a KAN layer whose edges are not B-splines, or is an instance of a subclass of a
            known class. The ``forward`` of a subclass may compute another function.
    """
    found = _kind_by_name(type(module), module)
    if found is not None:
        return found
    name, full_name = type(module).__name__, _qualified_name(type(module))
    if name in OTHER_BASES and not _is_fastkan(type(module)):
        raise ValueError(f"{full_name} is made of {OTHER_BASES[name]}: no B-splines compute the same")
    if name == "KANLinear" and not _is_fastkan(type(module)) and not _contains_known(module):
        raise ValueError(f"{full_name} lacks tensors of efficient-kan's KANLinear, which has grid and spline_weight")
    if type(module).__module__ == "kan.KAN":
        raise ValueError(f"{full_name} is from a pykan older than 0.2, which stores its splines differently")
    for base in type(module).__mro__[1:]:
        if _kind_by_name(base, module) is not None:
            raise ValueError(f"{full_name} is a subclass of {_qualified_name(base)}, so it may compute something else")
    return None


def is_copy(module: nn.Module) -> bool:
    """Whether a module may come from a modified copy of efficient-kan, so that its outputs must be compared with the
    outputs of the converted module. A copy can have the same class names as the original package, so a module with
    these class names may always come from a copy."""
    found = CLASSES.get((type(module).__module__, type(module).__name__))
    return found is None or found.package == "efficient-kan"


def _contains_known(module: nn.Module) -> bool:
    """Whether a submodule is an instance of a known class. In this case the module itself is a container that only has
    the name of a layer."""
    return any(_kind_by_name(type(each), each) is not None for each in module.modules() if each is not module)


def _kind_by_name(cls: type, module: nn.Module) -> SourceKind | None:
    found = CLASSES.get((cls.__module__, cls.__name__))
    if found is not None or _is_fastkan(cls):
        return found
    if cls.__name__ == "KANLinear":
        held = {*module._parameters, *module._buffers}
        return SourceKind.EFFICIENT_KAN_LAYER if held >= EFFICIENT_KAN.required else None
    if cls.__name__ == "KAN" and list(module._modules) == ["layers"]:
        held_in = module._modules["layers"]
        layers = list(held_in) if isinstance(held_in, (nn.ModuleList, nn.Sequential)) else []
        of_layers = layers and all(
            _kind_by_name(type(layer), layer) is SourceKind.EFFICIENT_KAN_LAYER for layer in layers
        )
        return SourceKind.EFFICIENT_KAN_NETWORK if of_layers else None
    return None


def _is_fastkan(cls: type) -> bool:
    return issubclass(cls, (KAN, KANLinear))


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# -- checks -----------------------------------------------------------------------------------------


def base_of(function: Callable[[Tensor], Tensor], name: str) -> str:
    """Return the name of the fastkan base function that computes the same values as ``function``."""
    shown = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", function)
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ValueError(f"{name}={shown} has parameters, which a base function cannot have")
    z = torch.cat([NEAR_POINTS, FAR_POINTS])
    given = z.clone()
    try:
        values = function(given)
    except Exception as error:
        raise ValueError(f"{name}={shown} cannot be called with float64: {error}") from error
    if not torch.equal(given, z):
        raise ValueError(f"{name}={shown} changes its input in place; a base function must leave it")
    for base, expected in (("silu", nn.functional.silu(z)), ("identity", z), ("none", 0 * z)):
        if isinstance(values, Tensor) and values.shape == z.shape and torch.allclose(values, expected, 1e-12, 1e-12):
            return base
    raise ValueError(f"{name}={shown} is none of the base functions silu, identity and zero")


def check_layers(source: nn.Module, parts: Iterable[nn.Module], kind: SourceKind) -> None:
    """Check that a network uses the ``forward`` of its class and that all its layers are layers of the same package."""
    _check_forward(source)
    if is_copy(source) and source._parameters:
        raise ValueError(
            f"it has the parameter {next(iter(source._parameters))}, which {kind.package}'s network does not have"
        )
    for place, part in enumerate(parts):
        if source_kind(part) is not kind:
            raise ValueError(f"its layer {place} must be {kind.value}, got a {type(part).__name__}")


def _check_forward(source: nn.Module) -> None:
    if "forward" in source.__dict__:
        raise ValueError("its forward was replaced on the instance, so it may compute something else")


def check_tensors(source: nn.Module, layout: Layout) -> None:
    """Check that a layer uses the ``forward`` of its class, has the tensors of its package's layout, and requires
    gradients only for tensors that fastkan can train."""
    _check_forward(source)
    held = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    known = layout.required | layout.optional
    if layout.required - held.keys():
        raise ValueError(f"it lacks {', '.join(sorted(layout.required - held.keys()))}")
    more = [name for name, _ in source.named_parameters() if name not in known]
    if more:
        raise ValueError(f"it has the parameter {more[0]}, which {layout.package}'s layer does not have")
    for name in sorted(known & held.keys() - set(layout.parameters.values())):
        if held[name].requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but fastkan cannot train it: call {name}.requires_grad_(False) first"
            )
    dtypes = {str(held[name].dtype) for name in layout.parameters.values() if name in held}
    if len(dtypes) > 1:
        raise ValueError(f"its parameters must have one dtype, got {' and '.join(sorted(dtypes))}")


def check_unshared(module: nn.Module, sources: dict[str, nn.Module]) -> None:
    """Check that no module shares a parameter with a module that will be converted. After the conversion, the two
    modules would have separate parameters."""
    inside = {id(each) for source in sources.values() for each in source.modules()}
    first: dict[int, tuple[nn.Module, str]] = {}
    for name, each in module.named_modules():
        for parameter in each._parameters.values():
            if parameter is None:
                continue
            known, known_name = first.setdefault(id(parameter), (each, name))
            if known is not each and (id(each) in inside or id(known) in inside):
                shown = known_name or "module"
                raise ValueError(f"{shown} and {name} share a parameter, which conversion would separate")


def warn_of_hooks(source: nn.Module) -> None:
    """Warn if a module that will be converted, or one of its parameters, has hooks, because hooks are not converted."""
    for each in source.modules():
        own = each._parameters.values()
        if has_hooks(each) or any(p is not None and p._backward_hooks for p in own):
            warn(f"the hooks of a {type(each).__name__} are not converted")
            return


@torch.no_grad()
def check_same_outputs(source: nn.Module, new: nn.Module) -> None:
    """Check on random inputs that the original module and the converted module have the same outputs, both in training
    mode and in evaluation mode."""
    first = new.layers[0] if isinstance(new, KAN) else new
    assert isinstance(first, KANLinear)
    if first.spline_weight.dtype.itemsize < 4:  # rounding errors of half precision are too large
        source, new = copy.deepcopy(source).double(), copy.deepcopy(new).double()
    like = next(new.parameters())
    low, high = (first.knots.min().item(), first.knots.max().item()) if first.in_features else (-1.0, 1.0)
    unit = torch.rand(64, first.in_features, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
    x = low + (high - low) * unit
    accelerators = [x.device] if x.is_cuda else []

    def random_states() -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in accelerators)]

    with torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices=accelerators):
        got = new(x)
        for training in (False, True):
            before = random_states()
            try:
                wanted: Any = copy.deepcopy(source).train(training)(x.clone())
            except Exception as error:
                raise ValueError(f"{CLAIM}, but cannot be called: {error}") from error
            if not all(map(torch.equal, before, random_states())):
                raise ValueError("it draws random numbers, as dropout does, but a converted layer does not")
            is_comparable = isinstance(wanted, Tensor) and wanted.shape == got.shape
            if not (is_comparable and bool((wanted - got).abs().max() <= MAX_DIFFERENCE * (1 + wanted.abs().max()))):
                raise ValueError(f"{CLAIM}, but computes something else{' in training mode' * training}")
