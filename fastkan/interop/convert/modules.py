"""``convert``: conversion of the layers and networks of other packages to layers and networks of fastkan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import BASE_FUNCTIONS, FLAG, Instance, Optional, checked, warn

from ...kan import KAN
from ...layers.function_library import SYMBOLIC_LIB
from ...layers.linear import KANLinear
from ...layers.symbolic import SymbolicEdges
from ...network.core import AFFINE
from ..attribute_reads import attribute_reads
from ..references import Reference, check_unwrapped, is_compiled, references
from .guesses import guesses
from .layouts import EFFICIENT_KAN, INKAN, OLD_PYKAN, PYKAN, Layout, layer_tensors, layout_of
from .sources import (
    SourceKind,
    base_of,
    check_layers,
    check_same_outputs,
    check_tensors,
    check_unshared,
    inputs_of,
    is_copy,
    near_misses,
    returns_one,
    source_kind,
    tensors_of,
    warn_of_hooks,
)


class Converted(dict[nn.Module, Any]):
    """A dictionary from each source, a module of another package, to its new module.

    Args:
        again: whether a copy of a network is converted again, only in order to be compared. The layers have been
            compared before, so their outputs are compared only to find how their tensors are to be read.
    """

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.again = again


@checked(module=Instance(nn.Module), inplace=FLAG, networks=Optional(FLAG))
@torch.inference_mode(False)
def convert(module: nn.Module, *, inplace: bool = False, networks: bool | None = None) -> nn.Module:
    """Replace the KAN layers of other packages in a module by fastkan layers that compute the same functions.

    Layers are converted to a :class:`fastkan.KANLinear`: efficient-kan's ``KANLinear``, inkan's ``KANLayer``, pykan's
    ``KANLayer`` of versions 0.2 and 0.0, and copies of them under any class name, which are recognised by their
    tensors. A layer whose tensors have other names or shapes is converted if they can be read as the coefficients,
    knots, weights, scales and bias of a layer with the same outputs. pykan's layer returns four tensors, but the new
    layer returns only the outputs; therefore it is converted inside another module only if it is a copy that returns
    one tensor.

    Networks are converted to a :class:`fastkan.KAN`: pykan's ``MultKAN`` and the ``KAN`` of pykan 0.0 everywhere, with
    grids, masks, scales, multiplication nodes, affine maps, formulas and ``input_id``; efficient-kan's ``KAN`` and
    inkan's ``KANNetwork`` if they are ``module`` itself. Inside of another module, these two keep their class, and only
    their layers are replaced. What the other module does with them, such as ``kan(x, update_grid=True)``,
    ``kan.regularization_loss()`` or a choice of parameters by class, continues to work.

    All other modules are copied. The ``requires_grad`` of parameters and the training modes of modules are kept, and a
    module that is used in several places remains one module. The packages need not be installed. Except for the classes
    of pykan and inkan themselves, the outputs and gradients of the converted module are compared with those of the
    original module, in float64 if the module can be called with float64. Where
    a formula is undefined or larger than ``y_th``, a call with ``singularity_avoiding=True`` gives other values than
    pykan, because :class:`fastkan.KAN` then evaluates the nearest point of the domain.

    Only submodules are converted. A layer that ``module`` holds only in a plain list is not converted. A layer that is
    a submodule, and is also held by a plain attribute, list or dictionary, is replaced in both places. References to
    the parameters of the layer are not replaced. The parameters of converted layers are new, so create the optimizer,
    and wrap the model for distributed training, after the conversion. Where an optimizer groups parameters by class,
    add :class:`fastkan.KANLinear`, which has ``spline_weight``, ``base_weight``, and maybe ``spline_scale`` and
    ``bias``.

    Args:
        module: a module of a class that can be converted, or a module with submodules of these classes.
        inplace: whether to change ``module`` itself instead of a copy of it.
        networks: whether efficient-kan's ``KAN`` and inkan's ``KANNetwork`` become a :class:`fastkan.KAN`, or keep
            their class with new layers. By default, they become a :class:`fastkan.KAN` if they are ``module`` itself,
            and keep their class if they are inside ``module``.

    Returns:
        The converted module. If ``inplace`` is True and ``module`` is not itself replaced by a new layer or network,
        ``module`` is changed and returned. Otherwise the returned module shares no tensors with ``module``.

    Raises:
        TypeError: if ``module`` is not a ``torch.nn.Module``.
        ValueError: if fastkan cannot represent a layer or network; the message names the layer, the reason and what to
            do instead. The reasons are functions that are not B-splines, other base functions, inkan's surfaces, masks
            between 0 and 1, trained grids and masks, coincident knots, shared functions and different grids of one
            input in pykan 0.0, outputs or gradients that differ, shared parameters, a layer that returns four tensors
            inside another module, tensors on the meta device, and layers that draw random numbers. A ValueError is also
            raised if a layer is inside a wrapper of distributed training, if the module cannot be copied, if there is
            nothing to convert, or if a function, such as a lambda in an attribute, holds a layer and would still call
            the original layer. If ``inplace`` is False, a ValueError is also raised if a function holds any submodule.
            If ``inplace`` is True, a ValueError is also raised if a layer is compiled.

    Warns:
        UserWarning: if a converted module, or one of its parameters, has hooks, because hooks are not converted; if
            ``module`` is a network that a :class:`fastkan.KAN` cannot represent, so that it keeps its class; if a copy
            returns the rows of inputs with three dimensions in one dimension; or if a method of another module reads a
            tensor of a converted layer, as in ``F.linear(x, self.layer.base_weight)``, that has another layout or name
            in the new layer. Reads through a variable or a list are not found.

    Example:
        >>> import kan  # doctest: +SKIP
        >>> model = convert(kan.KAN(width=[2, 5, 1], grid=5, k=3))  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(model.parameters())  # doctest: +SKIP
    """
    if networks is None and _is_chain(module):
        try:
            return _convert(module, inplace, True)
        except ValueError as error:
            refused = error
        try:
            with_layers = _convert(module, inplace, False)
        except ValueError:
            raise refused from None
        warn(f"{type(module).__name__} keeps its class, and only its layers are converted: {refused}")
        return with_layers
    return _convert(module, inplace, networks)


def _is_chain(module: nn.Module) -> bool:
    try:
        kind = source_kind(module)
    except ValueError:  # the search for layers raises the same error later
        return False
    return kind is not None and kind.is_chain


def _convert(module: nn.Module, inplace: bool, networks: bool | None) -> nn.Module:
    converted = Converted()
    sources = dict(_sources(module, "", bool(networks), converted))
    if not sources:
        if any(isinstance(each, (KAN, KANLinear)) for each in module.modules()):
            _outside_references(module, set(), inplace)
            return module if inplace else _copy_with(module, Converted(), sources)
        raise ValueError(
            f"module must be or contain one of {', '.join(kind.value for kind in SourceKind)}; "
            f"{type(module).__name__} contains none{near_misses(module)}"
        )
    check_unwrapped(module, sources.values(), "convert")
    check_unshared(module, sources)
    inside = {each for source in sources.values() for each in source.modules()}
    parents = [each for each in module.modules() if each not in inside]
    if inplace and any(is_compiled(each) and each._modules["_orig_mod"] in inside for each in parents):
        raise ValueError(
            "a compiled layer would still call its source: convert it before compiling, or use inplace=False"
        )
    held = _outside_references(module, inside, inplace)
    for path, source in sources.items():
        if source not in converted:
            try:
                converted[source] = _convert_source(source, converted, is_inside=bool(path))
            except ValueError as error:
                raise ValueError(f"{path or 'module'}, a {type(source).__name__}: {error}") from error
    if module in converted:
        return converted[module]
    _warn_of_reads(parents, converted)
    if not inplace:
        return _copy_with(module, converted, sources)
    for parent in parents:
        for name, child in list(parent._modules.items()):
            if child is not None and child in converted:
                parent._modules[name] = converted[child]
    for each in held:
        if each.held in converted and each.place is not None:
            space, key = each.place
            space[key] = converted[each.held]
    return module


def _warn_of_reads(parents: Iterable[nn.Module], converted: Converted) -> None:
    """Warn of methods of other modules that read a tensor of a layer that has another layout or name in the new layer,
    such as ``F.linear(x, self.layer.base_weight)``. Some reads remain correct, for example ``weight.abs().mean()``."""
    layers = {source: new for source, new in converted.items() if isinstance(new, KANLinear)}
    tensors = {source: tensors_of(source) for source in layers}
    tree = {str(place): parent for place, parent in enumerate(parents)}
    found: dict[str, None] = {}
    for read in attribute_reads(tree, {name for held in tensors.values() for name in held}):
        theirs = tensors.get(read.module, {}).get(read.attribute)
        if theirs is None:
            continue
        ours = getattr(layers[read.module], read.attribute, None)
        if ours is None:
            found[f"{read.method} reads {read.attribute}, which the new layer lacks"] = None
        elif not isinstance(ours, Tensor) or ours.shape != theirs.shape or not bool((ours == theirs).all()):
            shapes = f"{list(getattr(ours, 'shape', ()))} instead of {list(theirs.shape)}"
            found[f"{read.method} reads {read.attribute}, which has another layout in the new layer, {shapes}"] = None
    if found:
        warn(f"{'; '.join(found)}: change these methods if they depend on the layout, see fastkan.KANLinear")


def _outside_references(module: nn.Module, inside: set[nn.Module], inplace: bool) -> list[Reference]:
    """Return the references from outside the tree of submodules to the modules that will be converted. A conversion in
    place must replace these references. If ``inplace`` is False, return an empty list.

    Raises:
        ValueError: if a reference cannot be replaced, and would still call the original module after the conversion.
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
                f"{each.attribute} holds {_name_of(each.held, module)}, which is converted, and would still call the "
                "source: let it look the layer up in its module at each call"
            )
        if not inplace and each.shared:
            raise ValueError(
                f"{each.attribute} holds {_name_of(each.held, module)} in a function, so a copy of the module would "
                "still call the source's: convert with inplace=True"
            )
        found.append(each)
    return found if inplace else []


def _name_of(held: nn.Module | Tensor, module: nn.Module) -> str:
    named = (*module.named_modules(), *module.named_parameters(), *module.named_buffers())
    return next((name for name, each in named if each is held), "") or "the module itself"


def _copy_with(module: nn.Module, converted: Converted, sources: dict[str, nn.Module]) -> nn.Module:
    """Return a copy of a module in which the converted modules replace their originals, also in attributes and
    containers. A ``KANLayer`` of a network of pykan that is held in an attribute or container is not replaced, because
    it returns four tensors, and its callers expect four tensors."""
    found = set(sources.values())

    def is_replaced(source: nn.Module) -> bool:
        if source in found:
            return True
        kind = source_kind(source)
        return kind is not None and not kind.returns_four

    memo = {id(source): new for source, new in converted.items() if is_replaced(source)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        name = type(module).__name__
        raise ValueError(f"module, a {name}, cannot be copied; convert it with inplace=True: {error}") from error


def _sources(module: nn.Module, path: str, networks: bool, converted: Converted) -> Iterator[tuple[str, nn.Module]]:
    """Yield a tuple of the qualified name and the module for each submodule to convert. A submodule that has several
    names is yielded for each name. The search does not continue inside a submodule to convert. If ``networks`` is
    False, networks that only call their layers are not converted, but their layers are. Layers that can only be
    identified by their outputs are converted during the search."""
    if module not in converted and not isinstance(module, (KAN, KANLinear)) and layout_of(tensors_of(module)) is None:
        layer = _guessed(module)
        if layer is not None:
            warn_of_hooks(module)
            converted[module] = layer
    if module in converted:
        yield path, module
        return
    try:
        kind = source_kind(module)
    except ValueError as error:
        raise ValueError(f"{path or 'module'}: {error}") from None
    if kind is not None and (networks or not kind.is_chain):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _sources(child, f"{path}.{name}" if path else name, networks, converted)


def _convert_source(source: nn.Module, converted: Converted, is_inside: bool) -> nn.Module:
    kind = source_kind(source)
    assert kind is not None
    if is_inside and kind.returns_four and not (is_copy(source) and returns_one(source)):
        raise ValueError(
            f"it is {kind.value}, which returns four tensors, but a converted layer returns one. Convert the network "
            "that it comes from, or convert the layer by itself and change the module that calls it"
        )
    new = _build(source, kind, converted)
    warn_of_hooks(source)
    if kind.is_network:
        for each in new.modules():
            each.training = each.training if isinstance(each, KANLinear) else source.training
    return new


def _build(source: nn.Module, kind: SourceKind, converted: Converted) -> nn.Module:
    """Convert a module, and compare the outputs if the module may be a changed copy."""
    if not kind.is_network:
        return _build_layer(source, kind, converted.again)
    build = NETWORKS[kind]
    new = build(source, converted)
    if is_copy(source):
        check_same_outputs(source, new, lambda changed: build(changed, Converted(again=True)))
    return new


# -- layers -----------------------------------------------------------------------------------------


def _build_layer(source: nn.Module, kind: SourceKind, again: bool) -> KANLinear:
    """Convert a layer. A copy must have the outputs of its conversion. If a copy lacks the attribute in which the
    package's class keeps the base function, or its tensors have other shapes, base functions and layouts are tried
    until the outputs agree."""
    layout, name = LAYERS[kind]
    function: Any = getattr(source, name, None)
    if not is_copy(source):
        return convert_layer(source, layout, base_of(function, name))
    is_function = callable(function) and not isinstance(function, type)
    try:
        bases = [base_of(function, name)] if is_function else list(BASE_FUNCTIONS)
        return _compared(source, [(layout, base) for base in bases], again)
    except ValueError:
        layer = _guessed(source, again)
        if layer is None:
            raise
        return layer


def _guessed(source: nn.Module, again: bool = False) -> KANLinear | None:
    """Convert a layer whose tensors have other names or shapes than those of all packages, if one interpretation of the
    tensors gives the same outputs. Otherwise, return None."""
    ways = (
        (layout, base)
        for layout in guesses(source, tensors_of(source))
        for base in (BASE_FUNCTIONS if "base_weight" in layout.parameters else ("none",))
    )
    try:
        return _compared(source, ways, again)
    except ValueError:
        return None


def _compared(source: nn.Module, ways: Iterable[tuple[Layout, str]], again: bool) -> KANLinear:
    """Return the first conversion by a layout and a base function that has the outputs of the layer.

    Raises:
        ValueError: if no conversion has these outputs. The error is that of the first conversion.
    """
    refused = ValueError("its tensors cannot be those of a layer of B-splines")
    for number, way in enumerate(ways):

        def build(each: nn.Module, way: tuple[Layout, str] = way) -> KANLinear:
            return convert_layer(each, *way)

        try:
            new = build(source)
            check_same_outputs(source, new, build, briefly=again)
        except ValueError as error:
            refused = error if number == 0 else refused
        else:
            return new
    raise refused


def convert_layer(source: nn.Module, layout: Layout, base: str) -> KANLinear:
    """Convert a layer that has the given base function."""
    check_tensors(source, layout)
    held = tensors_of(source)
    trained = {name: held[theirs].requires_grad for name, theirs in layout.parameters.items() if theirs in held}
    translated = layer_tensors(layout, _with_sizes(source, layout, held))
    if base == "none" or translated.base_weight is None:
        base, translated = "none", translated._replace(base_weight=None)
    layer = KANLinear.from_splines(
        translated.knots, translated.spline_weight, translated.base_weight, translated.spline_scale, translated.bias,
        base=base,
    )  # fmt: skip
    layer.set_mask(translated.mask)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trained[name])
    return layer.train(source.training)


def _with_sizes(source: Any, layout: Layout, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a layer as the layout expects them, together with sizes that the class stores in other
    attributes."""
    if layout is EFFICIENT_KAN and not getattr(source, "enable_standalone_scale_spline", True):
        return {name: value for name, value in held.items() if name != "spline_scaler"}
    if layout is INKAN and hasattr(source, "inv_h"):
        if source.dim != 1:
            raise ValueError(f"dim={source.dim} makes it a surface over its inputs, not a sum of edges")
        step = torch.tensor(1 / source.inv_h, dtype=torch.float64, device=source.grid_starts.device)
        return {**held, "step": step}
    if layout is OLD_PYKAN:
        sharing = getattr(source, "weight_sharing", None)
        if sharing is not None and sharing.tolist() != list(range(len(held["coef"]))):
            raise ValueError("edges share a function by lock(), but edges of a KANLinear cannot share functions")
        return {**held, "inputs": torch.tensor(inputs_of(source, held["coef"]))}
    return held


# -- networks ---------------------------------------------------------------------------------------


def convert_layers(source: nn.Module, parts: Any, name: str, kind: SourceKind, converted: Converted) -> list[KANLinear]:
    """Convert the layers of a network. A layer that is used in several places is converted once."""
    check_layers(source, parts, kind)
    for place, each in enumerate(parts):
        if each not in converted:
            try:
                converted[each] = _build_layer(each, kind, converted.again)
            except ValueError as error:
                raise ValueError(f"{name}.{place}: {error}") from None
    layers = [converted[each] for each in parts]
    dtypes = {str(layer.spline_weight.dtype) for layer in layers}
    if len(dtypes) > 1:
        raise ValueError(f"its layers must have one dtype, got {' and '.join(sorted(dtypes))}")
    return layers


def build_network(layers: list[KANLinear], width: list[Any], mult_arity: Any = 2) -> KAN:
    """Construct a network with the given layers. ``width`` and ``mult_arity`` define the multiplication nodes of the
    network as in :class:`KAN`."""
    dtype, device = layers[0].spline_weight.dtype, layers[0].spline_weight.device
    model = KAN(width, grid=1, k=1, mult_arity=mult_arity, dtype=dtype, device=device)
    for place, layer in enumerate(layers):
        model.layers[place] = layer
    return model


def _plain_network(kind: SourceKind) -> Callable[[Any, Converted], KAN]:
    def build(source: Any, converted: Converted) -> KAN:
        layers = convert_layers(source, source.layers, "layers", kind, converted)
        return build_network(layers, _widths(layers))

    return build


def _widths(layers: list[KANLinear]) -> list[Any]:
    return [layers[0].in_features, *(each.out_features for each in layers)]


@torch.no_grad()
def _pykan_network(source: Any, converted: Converted) -> KAN:
    """Convert a ``MultKAN`` of pykan.

    pykan does not store the number of columns of the input. If a network reads only a part of the columns,
    ``in_features`` of the new network is set to the number of columns up to the last column that the network reads. If
    the input has more columns, the caller has to assign their number to ``in_features``.
    """
    layers = convert_layers(source, source.act_fun, "act_fun", SourceKind.PYKAN_LAYER, converted)
    arity = source.mult_arity
    arity = int(arity) if source.mult_homo else [[int(factors) for factors in nodes] for nodes in arity]
    model = build_network(layers, [[int(count) for count in pair] for pair in source.width], arity)
    model.grid_eps = float(source.grid_eps)
    _convert_formulas(source, model, converted)
    for name in AFFINE:
        for place, value in enumerate(getattr(source, name)):
            _set_affine(model, name, place, value)
    ids = source.input_id.long().to(model.device)
    model.input_id = ids.clone()
    model.in_features = int(ids.max()) + 1 if len(ids) else 0
    return model


@torch.no_grad()
def _old_pykan_network(source: Any, converted: Converted) -> KAN:
    """Convert a ``KAN`` of pykan 0.0, whose nodes have a bias, but no scale, and are sums."""
    layers = convert_layers(source, source.act_fun, "act_fun", SourceKind.OLD_PYKAN_LAYER, converted)
    model = build_network(layers, _widths(layers))
    model.grid_eps = float(source.act_fun[0].grid_eps)
    _convert_formulas(source, model, converted)
    for place, linear in enumerate(source.biases):
        _set_affine(model, "node_bias", place, linear.weight[0])
    return model


def _convert_formulas(source: Any, model: KAN, converted: Converted) -> None:
    if not source.symbolic_enabled:
        return
    for place, theirs in enumerate(source.symbolic_fun):
        if theirs not in converted:
            _set_formulas(model.symbolic[place], theirs, place)
            converted[theirs] = model.symbolic[place]
        model.symbolic[place] = converted[theirs]


def _set_affine(model: KAN, name: str, place: int, value: Tensor) -> None:
    ours = getattr(model, name)
    ours[place] = nn.Parameter(value.detach().clone().to(ours[place]), requires_grad=value.requires_grad)


def _set_formulas(edges: SymbolicEdges, source: Any, layer: int) -> None:
    if source.mask.requires_grad:
        raise ValueError(
            f"symbolic_fun.{layer}: mask requires a gradient, but fastkan cannot train it: call "
            "mask.requires_grad_(False) first"
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
            functions[fun, name] = _computes_same(fun, SYMBOLIC_LIB[name].fun)
        if not functions[fun, name]:
            raise ValueError(f"{place} is called {name!r}, but computes something other than fastkan's {name!r}")
        if not bool(source.affine[j, i].isfinite().all()):
            raise ValueError(f"{place} must have finite numbers, it has {source.affine[j, i].tolist()}")
        found.append([i, j, name])
    if found:
        found.sort()
        rows = source.affine.detach()[[j for _, j, _ in found], [i for i, _, _ in found]]
        edges.load_state_dict({"affine": rows, "formulas": found})  # one call is faster than a call for each edge
        edges.affine.requires_grad_(source.affine.requires_grad)


def _computes_same(theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]) -> bool:
    """Whether two functions have the same values, including NaN, at points on both sides of 0 and of 1."""
    z = torch.linspace(-2.9, 3.1, 61, dtype=torch.float64)
    try:
        return torch.allclose(theirs(z.clone()), ours(z), rtol=1e-9, atol=1e-9, equal_nan=True)
    except Exception:  # a function of the user may raise any error
        return False


# The layout of each class of layers, and the attribute in which the class keeps its base function.
LAYERS: dict[SourceKind, tuple[Layout, str]] = {
    SourceKind.EFFICIENT_KAN_LAYER: (EFFICIENT_KAN, "base_activation"),
    SourceKind.INKAN_LAYER: (INKAN, "base_activation"),
    SourceKind.PYKAN_LAYER: (PYKAN, "base_fun"),
    SourceKind.OLD_PYKAN_LAYER: (OLD_PYKAN, "base_fun"),
}
NETWORKS: dict[SourceKind, Callable[[Any, Converted], KAN]] = {
    SourceKind.EFFICIENT_KAN_NETWORK: _plain_network(SourceKind.EFFICIENT_KAN_LAYER),
    SourceKind.INKAN_NETWORK: _plain_network(SourceKind.INKAN_LAYER),
    SourceKind.PYKAN_NETWORK: _pykan_network,
    SourceKind.OLD_PYKAN_NETWORK: _old_pykan_network,
}
