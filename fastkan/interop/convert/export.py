"""Back to where one came from, where that is possible."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import FLAG, checked

from ...kan import KAN
from ...layers.edge_functions import mask_of
from ...layers.linear import KANLinear
from ...network.core import AFFINE
from .layouts import coincident

_PYKAN_BASES = {"silu": "silu", "identity": "identity", "none": "zero"}


@checked(standalone_scale=FLAG)
def to_efficient_kan_state_dict(module: nn.Module, *, standalone_scale: bool = True) -> dict[str, Tensor]:
    """The state_dict that efficient-kan's ``KANLinear`` or ``KAN`` loads to compute the same.

    Args:
        module: a :class:`fastkan.KANLinear`, a :class:`fastkan.KAN` of splines alone, or a module that holds
            KANLinears; what else it holds is taken along.
        standalone_scale: whether layers have a ``spline_scaler``, as is efficient-kan's default; else a scale is
            multiplied into the splines.

    Returns:
        New tensors. Edges that are off have weights of 0, and can be trained there.

    Raises:
        TypeError: for something that is no module.
        ValueError: for a layer with a bias, a base function other than silu, splines that go on linearly, or knots
            that coincide; for a network with formulas, multiplications, affine maps or columns of x that it does
            not read.

    Example:
        >>> sorted(to_efficient_kan_state_dict(KANLinear(2, 5)))
        ['base_weight', 'grid', 'spline_scaler', 'spline_weight']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    found: dict[str, Tensor] = {}
    passed: list[str] = []  # prefixes of what has been told
    for path, each in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(each, KAN):
            if not _is_of_splines(each):
                raise ValueError(
                    f"{path or 'module'} is more than layers of splines: it has formulas, multiplications, affine maps "
                    "or columns of x that it does not read"
                )
            passed.append(prefix)
        if isinstance(each, KANLinear):
            found |= {prefix + name: value for name, value in _efficient(each, path, standalone_scale).items()}
            passed.append(prefix)
    others = {
        name: value.detach().clone()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and not any(name.startswith(prefix) for prefix in passed)
    }
    return {**others, **found}


def _is_of_splines(model: KAN) -> bool:
    """Whether it is its layers one after another, on all columns of x."""
    plain = all(bool((p == ("scale" in name)).all()) for name in AFFINE for p in getattr(model, name))
    products = any(model.mult_arity) or any(symbolic.edges for symbolic in model.symbolic)
    return plain and not products and model.input_id.tolist() == list(range(model.in_features))


def _check_knots(layer: KANLinear, package: str, place: str) -> None:
    if bool(coincident(layer.knots).any()):
        raise ValueError(f"{place} has knots that coincide, of which {package} makes no B-splines")


def _efficient(layer: KANLinear, path: str, standalone_scale: bool) -> dict[str, Tensor]:
    wrong = {
        "a bias": layer.bias is not None,
        f"the base function {layer.base}": layer.base not in ("silu", "none"),
        "splines that go on linearly outside": layer.outside != "zero",
    }
    for what, there in wrong.items():
        if there:
            raise ValueError(f"{path or 'module'} has {what}, which efficient-kan has not")
    _check_knots(layer, "efficient-kan", path or "module")
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


@torch.no_grad()
def to_pykan(model: KAN | KANLinear) -> Any:
    """pykan's ``MultKAN``, or ``KANLayer``, that computes the same.

    Args:
        model: a network, with all it may have, or a layer.

    Returns:
        A model of its own, with ``auto_save`` off; formulas, masks, grids and what is trained included. No
        generator is seeded, which pykan does by itself.

    Raises:
        TypeError: for something else.
        ImportError: if pykan 0.2 or newer is not installed.
        ValueError: for a bias, splines that go on linearly, knots that coincide, base functions that differ from layer
            to layer, or formulas that pykan's library has not.

    Example:
        >>> theirs = to_pykan(KAN(width=[2, 5, 1]))  # doctest: +SKIP
    """
    if not isinstance(model, (KAN, KANLinear)):
        raise TypeError(f"model must be a KAN or a KANLinear, got {type(model).__name__}")
    layers = [model] if isinstance(model, KANLinear) else list(model.layers)
    for place, layer in enumerate(layers):
        for what, there in {"a bias": layer.bias is not None, "outside='linear'": layer.outside != "zero"}.items():
            if there:
                raise ValueError(f"layer {place} has {what}, which pykan has not")
        _check_knots(layer, "pykan", f"layer {place}")
    bases = {layer.base for layer in layers}
    if len(bases) > 1:
        raise ValueError(f"pykan has one base function for all layers, these have {', '.join(sorted(bases))}")
    with _undisturbed():
        return _pykan_layer(model) if isinstance(model, KANLinear) else _pykan_network(model, bases.pop())


def _pykan_network(model: KAN, base: str) -> Any:
    import kan
    from kan.utils import SYMBOLIC_LIB as LIBRARY

    for place, symbolic in enumerate(model.symbolic):
        for edge in symbolic.edges:
            if edge.name not in LIBRARY:
                raise ValueError(f"the formula of edge {(place, *edge[:2])} is {edge.name!r}, which pykan has not")
    theirs = kan.KAN(
        width=[list(pair) for pair in model.width],
        grid=model.grid,
        k=model.k,
        mult_arity=[list(arity) for arity in model.mult_arity],
        base_fun=_PYKAN_BASES[base],
        grid_eps=model.grid_eps,
        auto_save=False,
    ).to(model.device)
    for place, layer in enumerate(model.layers):
        _fill(theirs.act_fun[place], layer)
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
    base = {"silu": nn.SiLU(), "identity": nn.Identity(), "none": lambda x: x * 0.0}[layer.base]
    theirs = kan.KANLayer(*size, base_fun=base, device=str(layer.knots.device))
    _fill(theirs, layer)
    return theirs.train(layer.training)


def _fill(theirs: Any, layer: KANLinear) -> None:
    """Tensors and what is trained. A layer without a scale has ones there, which stay."""
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
def _undisturbed() -> Iterator[None]:
    """pykan seeds every generator there is, and prints."""
    import numpy as np

    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that pykan seeds
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
