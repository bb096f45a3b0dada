"""Export of layers and networks to efficient-kan and pykan."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import FLAG, Instance, checked

from ...kan import KAN
from ...layers.conv import KANConv
from ...layers.edge_functions import mask_of
from ...layers.linear import KANLinear
from ...network.core import AFFINE
from .layouts import has_coincident_knots

# Maps the names of base functions in fastkan to their names in pykan, or to functions that pykan has no name for.
_PYKAN_BASES = {"silu": "silu", "gelu": nn.GELU(), "identity": "identity", "none": "zero"}


@checked(module=Instance(nn.Module), standalone_scale=FLAG)
def to_efficient_kan_state_dict(module: nn.Module, *, standalone_scale: bool = True) -> dict[str, Tensor]:
    """Return a state_dict with which efficient-kan's ``KANLinear`` or ``KAN`` computes the same function as ``module``.

    Args:
        module: a :class:`fastkan.KANLinear`; a :class:`fastkan.KAN` that has only spline edges; or a module that
            contains KANLinear layers. The tensors of all other submodules are copied unchanged.
        standalone_scale: whether the layers have a ``spline_scaler``, which is the default of efficient-kan. If False,
            each spline scale is multiplied into the spline weights.

    Returns:
        A dictionary of new tensors. Because efficient-kan has no mask, edges that are off have zero weights, and
        training the efficient-kan module can change these weights.

    Raises:
        TypeError: if ``module`` is not a ``torch.nn.Module``.
        ValueError: if a layer has a bias, a base function other than silu, ``outside="linear"`` or coincident knots;
            or if a network has formulas, multiplication nodes, affine maps, or ignores columns of its input.

    To load the result, construct the original model as before::

        theirs = TheirModel(...)
        theirs.load_state_dict(to_efficient_kan_state_dict(ours))

    Example:
        >>> sorted(to_efficient_kan_state_dict(KANLinear(2, 5)))
        ['base_weight', 'grid', 'spline_scaler', 'spline_weight']
    """
    found: dict[str, Tensor] = {}
    converted: list[str] = []  # prefixes of the names of the layers and networks that were converted
    for path, each in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(each, KAN):
            if not _is_plain(each):
                raise ValueError(
                    f"{path or 'module'} must have only spline layers: it has formulas, multiplications, affine maps "
                    "or columns of x that it does not read"
                )
            converted.append(prefix)
        if isinstance(each, KANLinear):
            tensors = _efficient_kan_tensors(each, path, standalone_scale)
            found |= {prefix + name: value for name, value in tensors.items()}
            converted.append(prefix)
    others = {
        name: value.detach().clone()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and not any(name.startswith(prefix) for prefix in converted)
    }
    return {**others, **found}


def _is_plain(model: KAN) -> bool:
    """Whether a network is a plain chain of spline layers that reads all columns of its input in order."""
    plain = all(bool((p == ("scale" in name)).all()) for name in AFFINE for p in getattr(model, name))
    products = any(model.mult_arity) or any(symbolic.edges for symbolic in model.symbolic)
    return plain and not products and model.input_id.tolist() == list(range(model.in_features))


def _check_supported(layer: KANLinear, package: str, place: str) -> None:
    unsupported = {
        "the windows of a convolution": isinstance(layer, KANConv),
        "a bias": layer.bias is not None,
        f"the base function {layer.base}": package == "efficient-kan" and layer.base not in ("silu", "none"),
        "outside='linear'": layer.outside != "zero",
    }
    for feature, is_used in unsupported.items():
        if is_used:
            raise ValueError(f"{place} has {feature}, which {package} does not support")
    if bool(has_coincident_knots(layer.knots).any()):
        raise ValueError(f"{place} has coincident knots, on which {package} computes no B-splines")


def _efficient_kan_tensors(layer: KANLinear, path: str, standalone_scale: bool) -> dict[str, Tensor]:
    _check_supported(layer, "efficient-kan", path or "module")
    shape = layer.in_features, layer.out_features
    on = mask_of(layer).to(layer.spline_weight)
    base = layer.spline_weight.new_zeros(shape) if layer.base_weight is None else layer.base_weight * on
    splines, scale = layer.spline_weight * on, layer.spline_scale
    if not standalone_scale and scale is not None:
        splines, scale = splines * scale, None
    found = {"grid": layer.knots, "base_weight": base.t(), "spline_weight": splines.permute(2, 1, 0)}
    if standalone_scale:
        found["spline_scaler"] = (layer.spline_weight.new_ones(shape) if scale is None else scale).t()
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format).to(layer.spline_weight.dtype)
        for name, value in found.items()
    }


@checked(model=Instance(KAN, KANLinear))
@torch.no_grad()
def to_pykan(model: KAN | KANLinear) -> Any:
    """Return a pykan ``MultKAN`` or ``KANLayer`` that computes the same function as ``model``.

    Args:
        model: a network, which may have formulas, masks and multiplication nodes, or a single layer.

    Returns:
        A ``MultKAN`` if ``model`` is a network, and a ``KANLayer`` if ``model`` is a layer. The new module shares no
        tensors with ``model``, requires gradients for the same parameters, and has ``auto_save`` off. The states of the
        global random generators are preserved, although the constructors of pykan seed the generators.

    Raises:
        TypeError: if ``model`` is neither a KAN nor a KANLinear.
        ImportError: if pykan 0.2 or newer is not installed.
        ValueError: if a layer has a bias, ``outside="linear"`` or coincident knots, if the base functions of the layers
            differ, or if a formula is not in pykan's library.

    Example:
        >>> theirs = to_pykan(KAN(width=[2, 5, 1]))  # doctest: +SKIP
    """
    layers = [model] if isinstance(model, KANLinear) else list(model.layers)
    for place, layer in enumerate(layers):
        _check_supported(layer, "pykan", f"layer {place}")
    bases = {layer.base for layer in layers}
    if len(bases) > 1:
        raise ValueError(f"pykan supports one base function for all layers, got {', '.join(sorted(bases))}")
    with _pykan_contained():
        return _pykan_layer(model) if isinstance(model, KANLinear) else _pykan_network(model, bases.pop())


def _pykan_network(model: KAN, base: str) -> Any:
    import kan
    from kan.utils import SYMBOLIC_LIB as LIBRARY

    for place, symbolic in enumerate(model.symbolic):
        for edge in symbolic.edges:
            if edge.name not in LIBRARY:
                raise ValueError(f"edge {(place, *edge[:2])} has the formula {edge.name!r}, which pykan does not have")
    theirs = kan.KAN(
        width=model.width, grid=model.grid, k=model.k, mult_arity=model.mult_arity, base_fun=_PYKAN_BASES[base],
        grid_eps=model.grid_eps, auto_save=False,
    ).to(model.device)  # fmt: skip
    for place, layer in enumerate(model.layers):
        _set_tensors(theirs.act_fun[place], layer)
        symbolic, formulas = model.symbolic[place], theirs.symbolic_fun[place]
        affine = formulas.affine.detach().to(model.dtype)
        for edge, row in zip(symbolic.edges, symbolic.affine):
            function, sympy_function, _, guarded = LIBRARY[edge.name]
            formulas.mask.data[edge.j, edge.i] = 1.0
            formulas.funs[edge.j][edge.i], formulas.funs_sympy[edge.j][edge.i] = function, sympy_function
            formulas.funs_avoid_singularity[edge.j][edge.i] = guarded
            formulas.funs_name[edge.j][edge.i] = edge.name
            affine[edge.j, edge.i] = row
        formulas.affine.data = affine
        formulas.affine.requires_grad_(symbolic.is_trained)
        formulas.mask.data = formulas.mask.data.to(affine)
        for name in AFFINE:
            ours, other = getattr(model, name)[place], getattr(theirs, name)[place]
            other.data = ours.detach().clone()
            other.requires_grad_(ours.requires_grad)
    theirs.input_id = model.input_id.clone()
    return theirs.train(model.training)


def _pykan_layer(layer: KANLinear) -> Any:
    import kan

    size = layer.in_features, layer.out_features, layer.grid_size, layer.spline_order
    base = {"silu": nn.SiLU(), "gelu": nn.GELU(), "identity": nn.Identity(), "none": lambda x: x * 0.0}[layer.base]
    theirs = kan.KANLayer(*size, base_fun=base, device=str(layer.knots.device))
    _set_tensors(theirs, layer)
    return theirs.train(layer.training)


def _set_tensors(theirs: Any, layer: KANLinear) -> None:
    """Copy the tensors of a layer and their ``requires_grad`` to a pykan layer. If the layer has no scale, the scale of
    the pykan layer is set to 1 and is not trained."""
    ones = torch.ones_like(layer.spline_weight[0])
    scale, base = layer.spline_scale, layer.base_weight
    for name, value in {
        "coef": layer.spline_weight.permute(1, 2, 0),
        "grid": layer.knots.to(ones),
        "mask": mask_of(layer).to(ones),
        "scale_sp": ones if scale is None else scale,
        "scale_base": 0 * ones if base is None else base,
    }.items():
        getattr(theirs, name).data = value.detach().clone(memory_format=torch.contiguous_format)
    theirs.coef.requires_grad_(layer.spline_weight.requires_grad)
    theirs.scale_sp.requires_grad_(scale is not None and scale.requires_grad)
    theirs.scale_base.requires_grad_(base is not None and base.requires_grad)


@contextlib.contextmanager
def _pykan_contained() -> Iterator[None]:
    """Suppress the output that pykan's constructors print, and restore the states of the global random generators,
    which pykan's constructors seed."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that pykan seeds
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
