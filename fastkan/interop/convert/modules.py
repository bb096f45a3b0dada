"""``convert``: modules of other packages as ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import FLAG, checked

from ...kan import KAN
from ...layers.function_library import SYMBOLIC_LIB
from ...layers.linear import KANLinear
from ...layers.symbolic import SymbolicEdges
from ...network.core import AFFINE
from ..references import Reference, check_unwrapped, is_compiled, references
from .layouts import EFFICIENT_KAN, INKAN, PYKAN, Edges, Layout, read
from .sources import (
    Kind,
    base_of,
    check_alone,
    check_parts,
    check_same,
    check_tensors,
    is_copy,
    kind_of,
    warn_of_hooks,
)

Made = dict[nn.Module, Any]  # what became of each foreign module


@checked(inplace=FLAG)
@torch.inference_mode(False)
def convert(module: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A module that computes the same, with the KAN layers of other packages as ours.

    pykan's ``MultKAN``, efficient-kan's ``KAN`` and inkan's ``KANNetwork`` become a :class:`fastkan.KAN`, with
    grids, masks, scales, multiplication nodes, affine maps, formulas and ``input_id``; efficient-kan's ``KANLinear``,
    inkan's ``KANLayer`` and, by itself, pykan's ``KANLayer`` become a :class:`fastkan.KANLinear`, which returns the
    outputs alone. Everything else is copied. What was trainable is, training modes are kept, and modules that are in
    several places stay one. No package need be installed; classes are told by module and name, and efficient-kan's
    also in copies of its file, which are then compared by value.

    Make the optimizer after, and wrap for distributed training after: the parameters are new ones. Only submodules are
    looked at: a layer that ``module`` keeps in a plain list alone stays what it is. A layer that is a submodule, and in
    a plain attribute, list or dictionary as well, is replaced there, too; references to parameters are not.

    Args:
        module: one of these, or a module that has some in it.
        inplace: whether the layers are put into ``module`` itself instead of into a copy of it.

    Returns:
        The converted module, which shares nothing with the source; with ``inplace`` and layers inside, ``module``.

    Raises:
        TypeError: for something that is no module.
        ValueError: for what can't be the same, with its name: layers that have no B-splines, other base functions,
            surfaces, masks between 0 and 1, grids and masks that are trained, knots that coincide, subclasses,
            parameters that others share, a pykan ``KANLayer`` (which returns four tensors) inside of another module,
            tensors on meta, layers that draw random numbers; where a wrapper of distributed training holds the layers;
            where a function, such as a lambda that a module keeps, holds a layer, or without ``inplace`` any submodule,
            since a copy would go on calling the source's; where ``module`` can't be copied, or with ``inplace`` holds a
            compiled layer; and where there is nothing to convert.

    Warns:
        UserWarning: where a converted module or its parameters had hooks, which stay behind.

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
            _held_elsewhere(module, set(), inplace)
            return module if inplace else _copied(module, {})
        raise ValueError(
            f"module must be or hold KAN layers of {', '.join(kind.value for kind in Kind)}; {type(module).__name__} "
            "has none"
        )
    check_unwrapped(module, sources.values(), "convert")
    check_alone(module, sources)
    inside = {each for source in sources.values() for each in source.modules()}
    parents = [each for each in module.modules() if each not in inside]
    if inplace and any(is_compiled(each) and each._modules["_orig_mod"] in inside for each in parents):
        raise ValueError("a compiled layer goes on as it was: convert it first, or without inplace=True")
    held = _held_elsewhere(module, inside, inplace)
    made: Made = {}
    for path, source in sources.items():
        if source not in made:
            try:
                made[source] = _converted(source, made)
            except ValueError as error:
                raise ValueError(f"{path or 'module'}, a {type(source).__name__}: {error}") from error
    if module in made:
        return made[module]
    if not inplace:
        return _copied(module, made)
    for parent in parents:
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = made.get(child, child)
    for each in held:
        if each.held in made and each.place is not None:
            space, key = each.place
            space[key] = made[each.held]
    return module


def _held_elsewhere(module: nn.Module, inside: set[nn.Module], inplace: bool) -> list[Reference]:
    """References to sources that can be replaced in place.

    Raises:
        ValueError: for references that would go on calling a source, or with a copy the source's other modules.
    """
    parts = [*inside, *(parameter for each in inside for parameter in each.parameters(recurse=False))]
    wanted = parts if inplace else [*module.modules(), *module.parameters(), *module.buffers()]
    of_sources = {id(each) for each in parts}
    owners = {name: each for name, each in module.named_modules() if each not in inside and not is_compiled(each)}
    found = []
    for each in references(owners, module.modules(), wanted, copied=not inplace):
        own = id(each.held) in of_sources
        if own and (each.place is None if inplace else each.shared or each.method):
            raise ValueError(
                f"{each.attribute} holds {_name_of(each.held, module)}, a part of what is converted, and would go on "
                "calling it as it was: let it look that up in its module whenever it is called"
            )
        if not inplace and each.shared:
            raise ValueError(
                f"{each.attribute} holds {_name_of(each.held, module)} in a function, which a copy shares with its "
                "source and would call in its place: convert with inplace=True"
            )
        found.append(each)
    return found if inplace else []


def _name_of(held: nn.Module | Tensor, module: nn.Module) -> str:
    named = (*module.named_modules(), *module.named_parameters(), *module.named_buffers())
    return next((name for name, each in named if each is held), "") or "the module itself"


def _copied(module: nn.Module, made: Made) -> nn.Module:
    """With the new ones in their places; wherever a layer was held, but for pykan's, which are called otherwise."""
    memo = {id(source): new for source, new in made.items() if kind_of(source) not in (None, Kind.PYKAN_LAYER)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        name = type(module).__name__
        raise ValueError(f"module, a {name}, can't be copied, but converted with inplace=True: {error}") from error


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


def _converted(source: nn.Module, made: Made) -> nn.Module:
    kind = kind_of(source)
    assert kind is not None
    new = BUILDERS[kind](source, made)
    warn_of_hooks(source)
    if is_copy(source):
        check_same(source, new)
    if kind.is_network:
        for each in new.modules():
            each.training = each.training if isinstance(each, KANLinear) else source.training
    return new


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
    ends = edges.knots[:, [order, -order - 1]].double() if inputs else torch.tensor([[-1.0, 1.0]])
    with torch.random.fork_rng(devices=[]):  # a layer draws its first parameters, here from the CPU's generator
        layer = KANLinear(
            inputs,
            outputs,
            count - order,
            order,
            grid_range=(ends[:, 0].min().item(), ends[:, 1].max().item()),
            base=base,
            spline_scale=edges.spline_scale is not None,
            dtype=edges.spline_weight.dtype,
            device="cpu",
        )
    layer.to(edges.spline_weight.device)
    layer.load_state_dict(state)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trained[name])
    return layer


def layer_from(
    source: nn.Module, layout: Layout, base: str, changed: dict[str, Tensor | None] | None = None
) -> KANLinear:
    """A foreign layer as ours, with some of its tensors changed or, for None, left out."""
    check_tensors(source, layout)
    held: dict[str, Any] = {**dict(source.named_parameters()), **dict(source.named_buffers()), **(changed or {})}
    held = {name: value for name, value in held.items() if value is not None}
    trained = {name: held[theirs].requires_grad for name, theirs in layout.learned.items() if theirs in held}
    return built(read(layout, held), base, trained).train(source.training)


def _efficient_kan_layer(source: Any, made: Made) -> KANLinear:
    scaled = getattr(source, "enable_standalone_scale_spline", True)
    activation = getattr(source, "base_activation", nn.functional.silu)  # in some copies a call in forward
    base = base_of(activation, "base_activation")
    return layer_from(source, EFFICIENT_KAN, base, {} if scaled else {"spline_scaler": None})


def _inkan_layer(source: Any, made: Made) -> KANLinear:
    if source.dim != 1:
        raise ValueError(f"dim={source.dim} makes it a surface over its inputs, not a sum of edges")
    step = torch.tensor(1 / source.inv_h, dtype=torch.float64, device=source.grid_starts.device)
    return layer_from(source, INKAN, base_of(source.base_activation, "base_activation"), {"step": step})


def pykan_layer(source: Any, made: Made) -> KANLinear:
    """pykan's ``KANLayer``."""
    return layer_from(source, PYKAN, base_of(source.base_fun, "base_fun"))


# -- networks ---------------------------------------------------------------------------------------


def layers_of(source: nn.Module, parts: Any, name: str, kind: Kind, made: Made) -> list[KANLinear]:
    """A network's layers as ours; one that is in several places stays one."""
    check_parts(source, parts, kind)
    for place, each in enumerate(parts):
        if each not in made:
            try:
                made[each] = BUILDERS[kind](each, made)
            except ValueError as error:
                raise ValueError(f"{name}.{place}: {error}") from None
    layers = [made[each] for each in parts]
    dtypes = {str(layer.spline_weight.dtype) for layer in layers}
    if len(dtypes) > 1:
        raise ValueError(f"its layers must have one dtype, they have {' and '.join(sorted(dtypes))}")
    return layers


def network_of(layers: list[KANLinear], width: list[Any], mult_arity: Any = 2) -> KAN:
    """A network of these layers, which may have multiplications between them."""
    dtype, device = layers[0].spline_weight.dtype, layers[0].spline_weight.device
    model = KAN(width, grid=1, k=1, mult_arity=mult_arity, dtype=dtype, device=device)
    for place, layer in enumerate(layers):
        model.layers[place] = layer
    return model


def _stacked(kind: Kind) -> Callable[[Any, Made], KAN]:
    def build(source: Any, made: Made) -> KAN:
        layers = layers_of(source, source.layers, "layers", kind, made)
        return network_of(layers, [layers[0].in_features, *(each.out_features for each in layers)])

    return build


@torch.no_grad()
def _pykan_network(source: Any, made: Made) -> KAN:
    """The same network.

    pykan does not keep how many columns x has: of a network that reads only some, ``in_features`` becomes the number
    up to the last of them. Assign to it where x has more.

    Raises:
        ValueError: for what can't be the same.
    """
    layers = layers_of(source, source.act_fun, "act_fun", Kind.PYKAN_LAYER, made)
    arity = source.mult_arity
    arity = int(arity) if source.mult_homo else [[int(factors) for factors in nodes] for nodes in arity]
    model = network_of(layers, [[int(count) for count in pair] for pair in source.width], arity)
    model.grid_eps = float(source.grid_eps)
    for place in range(model.depth):
        if source.symbolic_enabled:
            theirs = source.symbolic_fun[place]
            if theirs not in made:
                _set_formulas(model.symbolic[place], theirs, place)
                made[theirs] = model.symbolic[place]
            model.symbolic[place] = made[theirs]
        for name in AFFINE:
            ours, kept = getattr(model, name), getattr(source, name)[place]
            ours[place] = nn.Parameter(kept.detach().clone().to(ours[place]), requires_grad=kept.requires_grad)
    ids = source.input_id.long().to(model.device)
    model.input_id = ids.clone()
    model.in_features = int(ids.max()) + 1 if len(ids) else 0
    return model


def _set_formulas(edges: SymbolicEdges, source: Any, layer: int) -> None:
    if source.mask.requires_grad:
        raise ValueError(
            f"symbolic_fun.{layer}: mask is trained, which it can't be here: mask.requires_grad_(False) before"
        )
    on, found, functions = source.mask.detach(), [], {}
    for j, i in on.nonzero().tolist():
        name, share = source.funs_name[j][i], on[j, i].item()
        place = f"the formula of edge {(layer, i, j)}"
        if share != 1:
            raise ValueError(f"{place} has the mask {share:g}; it must be 0 or 1")
        if name not in SYMBOLIC_LIB:
            raise ValueError(f"{place} is {name!r}, which is not in the library: add it by fastkan.add_symbolic")
        fun = source.funs[j][i]
        if (fun, name) not in functions:
            functions[fun, name] = _same_function(fun, SYMBOLIC_LIB[name].fun)
        if not functions[fun, name]:
            raise ValueError(f"{place} is called {name!r}, and computes something else than fastkan's {name!r}")
        if not bool(source.affine[j, i].isfinite().all()):
            raise ValueError(f"{place} must have finite numbers, it has {source.affine[j, i].tolist()}")
        found.append([i, j, name])
    if found:
        found.sort()
        rows = source.affine.detach()[[j for _, j, _ in found], [i for i, _, _ in found]]
        edges.load_state_dict({"affine": rows, "formulas": found})  # all at once: there may be thousands
        edges.affine.requires_grad_(source.affine.requires_grad)


def _same_function(theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]) -> bool:
    """On both sides of 0 and of 1, NaN where the other is."""
    z = torch.linspace(-2.9, 3.1, 61, dtype=torch.float64)
    try:
        return torch.allclose(theirs(z.clone()), ours(z), rtol=1e-9, atol=1e-9, equal_nan=True)
    except Exception:  # whatever a function of somebody's own does
        return False


BUILDERS: dict[Kind, Callable[[Any, Made], nn.Module]] = {
    Kind.EFFICIENT_KAN_LAYER: _efficient_kan_layer,
    Kind.EFFICIENT_KAN_NETWORK: _stacked(Kind.EFFICIENT_KAN_LAYER),
    Kind.INKAN_LAYER: _inkan_layer,
    Kind.INKAN_NETWORK: _stacked(Kind.INKAN_LAYER),
    Kind.PYKAN_LAYER: pykan_layer,
    Kind.PYKAN_NETWORK: _pykan_network,
}
