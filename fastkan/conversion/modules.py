"""``convert``: modules of other packages as ours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..layer import KANLinear
from ..network import KAN
from .layouts import EFFICIENT_KAN, INKAN, PYKAN, Edges, Layout, read
from .recognise import Kind, is_copy, kind_of

AGREE = 1e-4  # relative; what a copy of a class may differ by in float32


def convert(module: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A module that computes the same, with the KAN layers of other packages as ours.

    pykan's ``MultKAN``, efficient-kan's ``KAN`` and inkan's ``KANNetwork`` become a :class:`fastkan.KAN`, with
    grids, masks, scales, multiplication nodes, affine maps, formulas and ``input_id``; efficient-kan's ``KANLinear``,
    inkan's ``KANLayer`` and, by itself, pykan's ``KANLayer`` become a :class:`fastkan.KANLinear`, which returns the
    outputs alone. Everything else is copied. What was trainable is, training modes are kept, and modules that are in
    several places stay one. No package need be installed; classes are told by module and name, and efficient-kan's
    also in copies of its file, which are then compared by value.

    Make the optimizer after: the parameters are new ones.

    Args:
        module: one of these, or a module that has some in it.
        inplace: whether the layers are put into ``module`` itself instead of into a copy of it.

    Returns:
        The converted module, which shares nothing with the source; with ``inplace`` and layers inside, ``module``.

    Raises:
        TypeError: for something that is no module.
        ValueError: for what can't be the same, with its name: layers that have no B-splines, other base functions,
            surfaces, masks between 0 and 1, subclasses, parameters that others share, a pykan ``KANLayer`` (which
            returns four tensors) inside of another module; and where there is nothing to convert.

    Warns:
        UserWarning: where a converted module had hooks, which stay behind.

    Example:
        >>> import kan  # doctest: +SKIP
        >>> model = convert(kan.KAN(width=[2, 5, 1], grid=5, k=3))  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(model.parameters())  # doctest: +SKIP
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    sources = dict(_sources(module, ""))
    if not sources:
        if any(isinstance(each, (KAN, KANLinear)) for each in module.modules()):
            return module if inplace else copy.deepcopy(module)
        raise ValueError(
            f"module must be or hold KAN layers of {', '.join(kind.value for kind in Kind)}; {type(module).__name__} "
            "has none"
        )
    _check_alone(module, sources)
    made: dict[int, Any] = {}
    for path, source in sources.items():
        if id(source) not in made:
            try:
                made[id(source)] = _converted(source)
            except ValueError as error:
                raise ValueError(f"{path or 'module'}, a {type(source).__name__}: {error}") from error
    if id(module) in made:
        return made[id(module)]
    if not inplace:
        return copy.deepcopy(module, dict(made))
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = made.get(id(child), child)
    return module


def _sources(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """What will be converted, each by every path to it; nothing inside of it."""
    try:
        kind = kind_of(module)
    except ValueError as error:
        raise ValueError(f"{path or 'module'}: {error}") from None
    if kind is Kind.PYKAN_LAYER and path:
        raise ValueError(
            f"{path} is pykan's KANLayer, which returns four tensors; whoever calls it here would get one. "
            "Convert the MultKAN that it comes from, or the layer by itself"
        )
    if kind is not None:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _sources(child, f"{path}.{name}" if path else name)


def _check_alone(module: nn.Module, sources: dict[str, nn.Module]) -> None:
    """No parameter is in a source and somewhere else: the two would part."""
    owner: dict[int, str] = {}  # of the modules inside of sources
    for path, source in sources.items():
        for inside in source.modules():
            owner.setdefault(id(inside), path)
    first: dict[int, tuple[str, str]] = {}
    for name, each in module.named_modules():
        place = owner.get(id(each), name)
        for parameter in each._parameters.values():
            if parameter is None:
                continue
            known, known_name = first.setdefault(id(parameter), (place, name))
            if known != place and (id(each) in owner or known in sources):
                raise ValueError(f"{known_name} and {name} share a parameter, which a converted layer could not")


def _converted(source: nn.Module) -> nn.Module:
    kind = kind_of(source)
    assert kind is not None
    hooked = [each for each in source.modules() if each._forward_hooks or each._forward_pre_hooks]
    if hooked:
        warnings.warn(f"the hooks of a {type(hooked[0]).__name__} are left behind", UserWarning, stacklevel=4)
    new = BUILDERS[kind](source)
    if is_copy(source):
        _check_same(source, new)
    return new.train(source.training)


# -- layers -----------------------------------------------------------------------------------------


def built(edges: Edges, base: str, trained: dict[str, bool]) -> KANLinear:
    """A layer of these tensors, on their device and in their dtype.

    Args:
        trained: which parameters are.
    """
    count, inputs, outputs = edges.spline_weight.shape
    order, state = edges.order, edges.state()
    if base == "none":
        del state["base_weight"]
    ends = edges.knots[:, [order, -order - 1]].double()
    with torch.random.fork_rng(devices=[]):  # a layer draws its first parameters
        layer = KANLinear(
            inputs,
            outputs,
            count - order,
            order,
            grid_range=(ends[:, 0].min().item(), ends[:, 1].max().item()),
            base=base,
            spline_scale=edges.spline_scale is not None,
            dtype=edges.spline_weight.dtype,
            device=edges.spline_weight.device,
        )
    layer.load_state_dict(state)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trained[name])
    return layer


def layer_from(source: nn.Module, layout: Layout, base: str, more: dict[str, Tensor] | None = None) -> KANLinear:
    """A foreign layer as ours."""
    held = {**dict(source.named_parameters(recurse=False)), **dict(source.named_buffers(recurse=False))}
    missing = layout.needed - set(held)
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    trained = {name: held[theirs].requires_grad for name, theirs in layout.learned.items() if theirs in held}
    return built(read(layout, {**held, **(more or {})}), base, trained)


def base_of(function: Callable[[Tensor], Tensor], name: str) -> str:
    """The base function that computes what ``function`` does.

    Raises:
        ValueError: if none does.
    """
    z = torch.linspace(-6, 6, 97, dtype=torch.float64)
    values = function(z)
    for base, expected in (("silu", nn.functional.silu(z)), ("identity", z), ("none", 0 * z)):
        if torch.allclose(values, expected, rtol=1e-12, atol=1e-12):
            return base
    shown = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", function)
    raise ValueError(f"{name}={shown} is none of the base functions silu, identity and zero")


def _efficient_kan_layer(source: Any) -> KANLinear:
    return layer_from(source, EFFICIENT_KAN, base_of(source.base_activation, "base_activation"))


def _inkan_layer(source: Any) -> KANLinear:
    if source.dim != 1:
        raise ValueError(f"dim={source.dim} makes it a surface over its inputs, not a sum of edges")
    step = torch.tensor(1 / source.inv_h, dtype=torch.float64)
    return layer_from(source, INKAN, base_of(source.base_activation, "base_activation"), {"step": step})


def pykan_layer(source: Any) -> KANLinear:
    """pykan's ``KANLayer``."""
    return layer_from(source, PYKAN, base_of(source.base_fun, "base_fun"))


# -- networks ---------------------------------------------------------------------------------------


def network_of(layers: list[KANLinear], width: list[Any], mult_arity: Any = 2) -> KAN:
    """A network of these layers, which may have multiplications between them."""
    dtype, device = layers[0].spline_weight.dtype, layers[0].spline_weight.device
    model = KAN(width, grid=1, k=1, mult_arity=mult_arity, dtype=dtype, device=device)
    for place, layer in enumerate(layers):
        model.layers[place] = layer
    return model


def _stacked(layer: Callable[[Any], KANLinear]) -> Callable[[Any], KAN]:
    def build(source: Any) -> KAN:
        layers = [layer(each) for each in source.layers]
        return network_of(layers, [layers[0].in_features, *(each.out_features for each in layers)])

    return build


def _pykan_network(source: Any) -> KAN:
    from .pykan import network_from

    return network_from(source)


BUILDERS: dict[Kind, Callable[[Any], nn.Module]] = {
    Kind.EFFICIENT_KAN_LAYER: _efficient_kan_layer,
    Kind.EFFICIENT_KAN_NETWORK: _stacked(_efficient_kan_layer),
    Kind.INKAN_LAYER: _inkan_layer,
    Kind.INKAN_NETWORK: _stacked(_inkan_layer),
    Kind.PYKAN_LAYER: pykan_layer,
    Kind.PYKAN_NETWORK: _pykan_network,
}


@torch.no_grad()
def _check_same(source: nn.Module, new: nn.Module) -> None:
    """A copied class may have been changed: what both compute must agree."""
    first = new.layers[0] if isinstance(new, KAN) else new
    assert isinstance(first, KANLinear)
    low, high = first.knots.min().item(), first.knots.max().item()
    draw = torch.Generator().manual_seed(0)
    unit = torch.rand(64, first.in_features, generator=draw).to(first.spline_weight)
    x = low + (high - low) * unit
    wanted, got = source(x), new(x)
    if not (
        isinstance(wanted, Tensor)
        and wanted.shape == got.shape
        and (wanted - got).abs().max() <= AGREE * (1 + wanted.abs().max())
    ):
        raise ValueError("it has the name and the tensors of efficient-kan's, but computes something else")
